"""The bounds of passing frames down to a site's gateways: what does not fit is asked for again, and comes then."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest

from cloud_ingest.inbound import Inbound
from cloud_ingest.services.sites import Sites
from cloud_store.base.connection import connect
from cloud_store.merge import presence
from cloud_store.merge.arrivals import MergeReport
from cloud_store.tenancy import registry
from testbed.eventually import eventually_async
from testbed.store import MergeSession, Session, StoreModule, context, running
from tests.cloud_store.histories import EPOCH, NOW_MS, Chain, movement
from wire_protocol import clock, topics
from wire_protocol.messages import GatewayStatus
from wire_protocol.site_messages import SiteFrame, SiteHeads, SiteRequest, unpack
from wire_protocol.topics import Channel

GATEWAYS = 5
FRAMES = 60
SETTINGS: dict[str, Any] = {"site_asks_waiting_max": 100, "site_answer_bytes_max": 1 << 12, "site_peers_max": 4}


@dataclass
class Down:
    """What is published, by topic."""

    messages: list[tuple[str, SiteFrame | SiteHeads]] = field(default_factory=list)

    def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """As the worker's link."""
        del qos, retain
        self.messages += [(topic, piece) for piece in unpack(payload)]

    def to(self, gateway: str) -> list[SiteFrame | SiteHeads]:
        """What one gateway is sent."""
        return [message for topic, message in self.messages if topic == topics.link(gateway, Channel.SITE_LEDGER)]


@pytest.fixture
def merged(database_url: str) -> Iterator[MergeReport]:
    """Five gateways of one site, of which the first has shipped sixty frames; what the last of them did."""
    with closing(connect(database_url, application="test")) as connection:
        registry.add_tenant(connection, "acme")
        registry.add_site(connection, "acme", "berlin")
        for number in range(GATEWAYS):
            registry.add_gateway(connection, "acme", "berlin", f"gw-{number}")
    chain = Chain("gw-0")
    entries = [movement(clock.pack(NOW_MS, n), "receive", "@supplier", "A-1") for n in range(FRAMES)]
    with closing(MergeSession(database_url)) as merger:
        yield [merger.merge([chain.seal([entry])]) for entry in entries][-1]


def requested(gateway: str, payload: bytes) -> Inbound:
    """A request as it comes in."""
    return Inbound(gateway, Channel.SITE_REQUEST, topics.link(gateway, Channel.SITE_REQUEST), payload, NOW_MS)


async def work(service: Sites, down: Down, messages: int) -> None:
    """Let it work until it has nothing left to do, and so many messages were published."""
    async with running(service.loops()):
        await eventually_async(lambda: not service.requests and not service._merged and len(down.messages) >= messages)
        await service.push()  # after what was in hand: both wait for the one connection


@pytest.mark.bound("cloud.site_answer_bytes_max")
@pytest.mark.usefixtures("merged")
async def test_an_answer_is_bounded_and_the_rest_is_asked_for(database_url: str) -> None:
    """A gateway that fetches a year must not hold up the acknowledgements of the others."""
    with Session(database_url) as session:
        down, rounds = Down(), 0
        service = Sites(context(session.database, down.publish, **SETTINGS))
        have = 0
        while have < FRAMES:
            before = len(down.messages)
            logs = [{"gateway": "gw-0", "epoch": EPOCH, "frame": have}] if have else []
            service.requested(requested("gw-1", SiteRequest.model_validate({"logs": logs}, strict=False).encode()))
            await work(service, down, before + 2)
            *sent, heads = down.to("gw-1")[before:]
            size = sum(len(message.frame) for message in sent if isinstance(message, SiteFrame))
            assert 0 < size <= SETTINGS["site_answer_bytes_max"]
            have, rounds = have + len(sent), rounds + 1
            assert isinstance(heads, SiteHeads)
            assert heads.more == (have < FRAMES)
    assert rounds > 1


@pytest.mark.bound("cloud.site_asks_waiting_max")
async def test_asks_beyond_the_bound_are_left_to_the_next_time(merged: MergeReport, database_url: str) -> None:
    """A fleet that comes back at once asks at once; who is not answered asks again."""
    del merged
    with Session(database_url) as session:
        down = Down()
        service = Sites(context(session.database, down.publish, **SETTINGS))
        for number in range(SETTINGS["site_asks_waiting_max"]):
            service.requested(requested(f"gw-unknown-{number}", SiteRequest().encode()))
        service.requested(requested("gw-1", SiteRequest().encode()))
        service.requested(requested("gw-unknown-0", b"nonsense"))
        await work(service, down, 0)
        assert down.messages == []
        service.requested(requested("gw-1", SiteRequest().encode()))
        await work(service, down, 1)
        assert isinstance(down.to("gw-1")[-1], SiteHeads)


@pytest.mark.bound("cloud.site_peers_max")
@pytest.mark.parametrize(("peers_max", "told"), [(4, 4), (3, 0)])
async def test_a_site_of_too_many_gateways_is_left_to_asking(
    merged: MergeReport, database_url: str, peers_max: int, told: int
) -> None:
    """Pushing each frame to each of a hundred gateways would cost more than all the rest."""
    online = GatewayStatus(state="online", epoch=EPOCH, version="test", at_ms=NOW_MS)
    with closing(StoreModule(presence, database_url)) as contacts:
        contacts.record((f"gw-{number}", online, NOW_MS) for number in range(GATEWAYS))
    with Session(database_url) as session:
        down = Down()
        service = Sites(context(session.database, down.publish, **SETTINGS | {"site_peers_max": peers_max}))
        service.merged(merged.merged)
        await work(service, down, told)
        assert [topic for topic, _ in down.messages] == [
            topics.link(f"gw-{number}", Channel.SITE_LEDGER) for number in range(1, 1 + told)
        ]

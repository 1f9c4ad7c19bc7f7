"""Whom a worker answers: gateways that connect, and those that believe that the cloud has more than it has."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from cloud_ingest.inbound import Inbound
from cloud_ingest.merge.presence import Presence
from cloud_store.base.connection import connect
from cloud_store.base.errors import Unstorable
from cloud_store.merge import presence
from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.presence import Contacts, Standing
from cloud_store.tenancy import registry
from testbed.store import Failed, Session, context
from wire_protocol import names, topics
from wire_protocol.messages import Ack, GatewayStatus, StreamStatus
from wire_protocol.replication import NO_CURSOR
from wire_protocol.topics import Channel

EPOCH = names.ulid(1_790_000_000_000, bytes(10))


def status_of(gateway: str, at_ms: int = 0, *, arrived: bool = True, acked: int = 0, retained: bool = False) -> Inbound:
    """What a gateway says that is online."""
    stream = StreamStatus(last_seq=acked, sealed_frame=acked, acked_frame=acked, acked_seq=acked)
    status = GatewayStatus(state="online", epoch=EPOCH, arrived=arrived, version="1", streams={"ledger": stream})
    topic = topics.link(gateway, Channel.STATUS)
    return Inbound(gateway, Channel.STATUS, topic, status.encode(), at_ms, retained)


class Desk:
    """Presence on a real store, and what gateways were told."""

    def __init__(self, session: Session, gateway: str) -> None:
        self.gateway, self.said = gateway, list[Ack]()
        self.presence = Presence(context(session.database, self._published), lambda _: 16)
        self._at_ms = itertools.count(1_790_000_000_000)

    def _published(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        del topic, qos, retain
        self.said.append(Ack.decode(payload))

    async def told(self, *, arrived: bool, acked: int = 0, retained: bool = False) -> list[str]:
        """The streams that a gateway is told of after it has said this."""
        said = status_of(self.gateway, next(self._at_ms), arrived=arrived, acked=acked, retained=retained)
        self.presence.reported(said)
        self.said.clear()
        await self.presence.answer()
        assert all(ack.want == 1 for ack in self.said)
        return sorted(ack.stream for ack in self.said)


@pytest.fixture
def desk(database_url: str, unique_name: Callable[..., str]) -> Iterator[Desk]:
    """A registered gateway of which nothing was merged yet."""
    tenant, gateway = unique_name("acme"), unique_name("gw")
    with closing(connect(database_url, application="test")) as connection:
        registry.add_tenant(connection, tenant)
        registry.add_site(connection, tenant, "berlin")
        registry.add_gateway(connection, tenant, "berlin", gateway)
    with Session(database_url) as session:
        yield Desk(session, gateway)


@pytest.mark.services
async def test_whoever_comes_is_answered_once(desk: Desk) -> None:
    """A clone may come in an epoch that another has left without a word, and be believed to be there already."""
    assert await desk.told(arrived=True) == ["ledger", "readings"]
    assert await desk.told(arrived=False) == []
    assert await desk.told(arrived=True) == ["ledger", "readings"]
    assert await desk.told(arrived=True, retained=True) == [], "it may have left long ago"


@pytest.mark.services
async def test_whoever_believes_that_the_cloud_has_more_is_told_every_time(desk: Desk) -> None:
    """The cloud fell back, and the message that said so was lost; the gateway has nothing to send, so it is silent."""
    await desk.told(arrived=True)
    assert await desk.told(arrived=False, acked=5) == ["ledger"]
    assert await desk.told(arrived=False, acked=5) == ["ledger"]
    assert await desk.told(arrived=False, acked=0) == []


async def test_an_answer_gives_way_to_the_acknowledgement_that_overtook_it() -> None:
    """Its cursor was read before the merge committed: the gateway would step back and send again what is merged."""
    logs = [LogKey(f"gw-{number}", "ledger", EPOCH) for number in range(4)]
    asked = list[str]()

    def exchange(_contacts: Contacts) -> Standing:
        """The cursors are read, and a moment later a merge is committed."""
        standing = Standing(dict.fromkeys(logs, NO_CURSOR), {})
        made.acknowledged([logs[0]])
        return standing

    async def pause(seconds: float) -> None:
        """The pause after each ask, in which the last gateway's frame is merged too."""
        assert seconds == 1.0
        made.acknowledged([logs[3]])

    def publish(topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        del payload, qos, retain
        asked.append(topic)

    made = Presence(
        replace(context({presence.exchange: exchange}, publish, asks_per_s_max=1), pause=pause), lambda _: 16
    )
    made.acknowledged([logs[2]])  # before the cursors were read: they know of it
    made.subscribed(frozenset({1}))
    await made.answer()
    assert asked == [topics.link(f"gw-{number}", Channel.ACK) for number in (1, 2)]
    assert made._acknowledged is None, "between two answers nothing is noted, so it cannot grow"


async def test_a_status_that_cannot_be_stored_keeps_no_other_gateway_waiting() -> None:
    """The contacts of one moment are stored together; one that the database refuses would hold up all of them."""
    told = list[str]()

    def exchange(contacts: Contacts) -> Standing:
        if "gw-evil" in contacts.statuses:
            raise Unstorable("an absurd number")
        return Standing({LogKey(name, "ledger", EPOCH): NO_CURSOR for name in contacts.statuses}, {})

    def publish(topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        del payload, qos, retain
        told.append(topic)

    stands = context({presence.exchange: exchange}, publish)
    made = Presence(stands, lambda _: 16)
    for gateway in ("gw-a", "gw-evil", "gw-b"):
        made.reported(status_of(gateway))
    await made.answer()
    assert sorted(told) == sorted(topics.link(gateway, Channel.ACK) for gateway in ("gw-a", "gw-b"))
    assert isinstance(stands.failed, Failed)
    assert [gateway for _, gateway, _ in stands.failed] == ["gw-evil"]


async def test_a_contact_that_fails_in_a_way_nobody_expected_costs_itself() -> None:
    """Statuses are stored together; an error that is no store's kept all of them waiting, again and again."""
    evil, good = "gw-evil", "gw-good"

    def exchange(contacts: Contacts) -> Standing:
        if evil in contacts.statuses:
            raise RuntimeError("a defect")
        return Standing({}, {})

    stands = context({presence.exchange: exchange})
    desk = Presence(stands, lambda _: 1)
    for gateway in (evil, good):
        desk.reported(status_of(gateway))
    await desk.answer()
    assert isinstance(stands.failed, Failed)
    assert [(service, gateway) for service, gateway, _ in stands.failed] == [("presence", evil)]
    assert desk._statuses == {}

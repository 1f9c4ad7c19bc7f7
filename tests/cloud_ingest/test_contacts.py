"""Whom a worker answers: whoever comes, and whoever believes that the cloud has more than it has."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from cloud_ingest.merge.presence import Contacts
from cloud_ingest.settings import IngestSettings
from cloud_store.base.connection import connect
from cloud_store.merge.presence import ContactStore
from cloud_store.tenancy import registry
from wire_protocol import names, topics
from wire_protocol.messages import Ack, GatewayStatus, StreamStatus

pytestmark = pytest.mark.services
EPOCH = names.ulid(1_790_000_000_000, bytes(10))


class Desk:
    """Contacts on a real store, and what they have said."""

    def __init__(self, store: ContactStore, gateway: str) -> None:
        self.gateway, self.said = gateway, list[Ack]()
        self.contacts = Contacts(
            IngestSettings(), store, lambda _topic, payload: self.said.append(Ack.decode(payload)), lambda _: 16
        )
        self._at_ms = itertools.count(1_790_000_000_000)

    async def told(self, *, arrived: bool, acked: int = 0, retained: bool = False) -> list[str]:
        """The streams that a gateway is told of after it has said this."""
        stream = StreamStatus(last_seq=acked, sealed_frame=acked, acked_frame=acked, acked_seq=acked)
        status = GatewayStatus(state="online", epoch=EPOCH, arrived=arrived, version="1", streams={"ledger": stream})
        topic = topics.link(self.gateway, topics.Channel.STATUS)
        self.contacts.heard(self.gateway, topic, status.encode(), received_ms=next(self._at_ms), retained=retained)
        self.said.clear()
        await self.contacts._answer()
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
    store = ContactStore(database_url, application="test")
    yield Desk(store, gateway)
    store.close()


async def test_whoever_comes_is_answered_once(desk: Desk) -> None:
    """A clone may come in an epoch that another has left without a word, and be believed to be there already."""
    assert await desk.told(arrived=True) == ["ledger", "readings"]
    assert await desk.told(arrived=False) == []
    assert await desk.told(arrived=True) == ["ledger", "readings"]
    assert await desk.told(arrived=True, retained=True) == [], "it may have left long ago"


async def test_whoever_believes_that_the_cloud_has_more_is_told_every_time(desk: Desk) -> None:
    """The cloud fell back, and the message that said so was lost; the gateway has nothing to send, so it is silent."""
    await desk.told(arrived=True)
    assert await desk.told(arrived=False, acked=5) == ["ledger"]
    assert await desk.told(arrived=False, acked=5) == ["ledger"]
    assert await desk.told(arrived=False, acked=0) == []

"""Whom a worker answers: whoever comes, and whoever believes that the cloud has more than it has."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, cast

import pytest

from cloud_ingest.merge.presence import Contacts
from cloud_ingest.settings import IngestSettings
from cloud_store.base.connection import connect
from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.presence import ContactStore
from cloud_store.tenancy import registry
from wire_protocol import names, topics
from wire_protocol.messages import Ack, GatewayStatus, Rejected, StreamStatus
from wire_protocol.replication import NO_CURSOR, Cursor

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


class SlowStore:
    """A store of four gateways that answers when it is let: its cursors are of before."""

    def __init__(self) -> None:
        self.logs = [LogKey(f"gw-{number}", "ledger", EPOCH) for number in range(4)]
        self.read, self.let = asyncio.Event(), threading.Event()
        self._loop = asyncio.get_running_loop()

    def quarantine(self, _letters: object) -> None:
        """Part of `ContactStore`."""

    def record(self, statuses: Iterable[object]) -> None:
        """Part of `ContactStore`."""
        list(statuses)

    def trim_dead_letters(self) -> None:
        """Part of `ContactStore`."""

    def cursors_in(self, _shards: object) -> dict[LogKey, Cursor]:
        """Part of `ContactStore`."""
        return dict.fromkeys(self.logs, NO_CURSOR)

    def verdicts_of(self, _logs: object) -> dict[LogKey, list[Rejected]]:
        """Part of `ContactStore`."""
        self._loop.call_soon_threadsafe(self.read.set)
        assert self.let.wait(10)
        return {}


async def test_an_answer_gives_way_to_the_acknowledgement_that_overtook_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cursor was read before the merge committed: the gateway would step back and send again what is merged."""
    store, asked = SlowStore(), list[str]()
    contacts = Contacts(
        IngestSettings(asks_per_s_max=1), cast("Any", store),
        lambda topic, _payload: asked.append(topic), lambda _: 16,
    )  # fmt: skip

    async def pause(seconds: float) -> None:
        """The pause after each ask, in which the last gateway's frame is merged too."""
        assert seconds == 1.0
        contacts.acknowledged([store.logs[3]])

    contacts.acknowledged([store.logs[2]])  # before the cursors were read: they know of it
    contacts.subscribed(frozenset({1}))
    answering = asyncio.create_task(contacts._answer())
    await store.read.wait()
    contacts.acknowledged([store.logs[0]])
    monkeypatch.setattr(asyncio, "sleep", pause)
    store.let.set()
    await answering
    assert asked == [topics.link(f"gw-{number}", topics.Channel.ACK) for number in (1, 2)]
    assert contacts._acknowledged is None, "between two answers nothing is noted, so it cannot grow"

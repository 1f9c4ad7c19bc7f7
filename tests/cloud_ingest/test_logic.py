"""The worker's decisions, without servers: queue bounds, windows, leases, refusals, answers while the store is away."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_ingest.leases import rebalance
from cloud_ingest.merge.denylist import Refusals
from cloud_ingest.merge.inbox import Arrival, Inbox, window
from cloud_ingest.merge.loop import Merging, decode
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
from cloud_store.base.errors import DatabaseUnavailable
from cloud_store.base.leases import Survey
from cloud_store.merge.arrivals import ArrivedFrame, Gateway, MergeReport
from cloud_store.merge.dead_letters import DeadLetter
from cloud_store.merge.plan import make
from cloud_store.tenancy.quotas import Credit
from tests.cloud_store.histories import NOW_MS, Chain, movement
from wire_protocol import clock
from wire_protocol.address import BrokerAddress
from wire_protocol.messages import Ack
from wire_protocol.topics import SHARDS


def arrival(payload: bytes = b"x", gateway: str = "gw-a") -> Arrival:
    """A payload on the ledger topic of a gateway."""
    return Arrival(gateway, "ledger", "topic", payload, NOW_MS)


@pytest.mark.bound("cloud.inbox_frames_max")
@pytest.mark.bound("cloud.inbox_bytes_max")
def test_the_inbox_is_bounded_in_frames_and_in_bytes() -> None:
    """What does not fit is refused, and room comes back when frames are merged."""
    inbox = Inbox(frames_max=3, bytes_max=10)
    assert [inbox.offer(arrival(b"123%d" % n)) for n in range(3)] == ["taken", "taken", "no_room"]
    assert inbox.fill == pytest.approx(0.8)
    taken = inbox.take(10)
    assert len(taken) == 2
    assert inbox.offer(arrival(b"123")) == "no_room", "what is being merged is still in memory"
    inbox.settled([(each.gateway, each.payload) for each in taken])
    assert [inbox.offer(arrival(b"%d" % n)) for n in range(4)] == ["taken", "taken", "taken", "no_room"]


def test_what_waits_already_is_not_taken_twice() -> None:
    """A gateway whose frames wait too long sends them again: to read them twice would make the wait longer still."""
    inbox = Inbox(frames_max=16, bytes_max=100)
    assert inbox.offer(arrival(b"1")) == "taken"
    assert [inbox.offer(arrival(b"1")), inbox.offer(arrival(b"1", "gw-b"))] == ["repeated", "taken"]
    assert len(inbox.take(10)) == 2
    assert [inbox.offer(arrival(b"1")), inbox.offer(arrival(b"1", "gw-c"))] == ["repeated", "taken"]
    inbox.settled([("gw-a", b"1")])
    assert inbox.offer(arrival(b"1")) == "taken"  # it was merged, or not: the merge will know
    assert inbox.offer(arrival(b"1", "gw-b")) == "repeated"


def test_gateways_take_turns_and_keep_their_own_order() -> None:
    """One that sends a lot does not keep the others waiting."""
    inbox = Inbox(frames_max=16, bytes_max=1 << 20)
    for gateway, payload in (("a", b"1"), ("a", b"2"), ("a", b"3"), ("b", b"1"), ("b", b"2"), ("c", b"1")):
        inbox.offer(arrival(payload, gateway))
    taken = [*inbox.take(4), *inbox.take(4)]
    order = [f"{frame.gateway}{frame.payload.decode()}" for frame in taken]
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert len(inbox) == 0


@given(st.floats(0, 1), st.integers(1, 1024))
def test_windows_shrink_with_the_queue_and_never_close(fill: float, frames_max: int) -> None:
    """Full speed until half full; one frame when there is no room left."""
    assert 1 <= window(fill, frames_max) <= frames_max
    assert window(0.5, frames_max) == frames_max
    assert window(1.0, frames_max) == 1


@given(st.integers(1, 9))
def test_workers_end_with_fair_shares_of_all_shards(workers: int) -> None:
    """However they start, every shard has one holder after some rounds, and nobody more than the share."""
    held: list[frozenset[int]] = [frozenset(range(SHARDS)), *[frozenset()] * (workers - 1)]
    for turn in range(3 * workers):
        me = turn % workers
        others = frozenset().union(*(shards for number, shards in enumerate(held) if number != me))
        change = rebalance(Survey(workers, held[me], others))
        held[me] = held[me] - change.release | change.acquire
    assert sum(map(len, held)) == len(frozenset().union(*held)) == SHARDS
    assert max(map(len, held)) <= -(-SHARDS // workers)


@pytest.mark.bound("cloud.refused_gateways_max")
def test_refusals_end_and_are_bounded() -> None:
    """A refused gateway is ignored for a while; the memory of it has a bound."""
    refusals = Refusals(quiet_s=10, gateways_max=2)
    for number in range(3):
        refusals.add(f"gw-{number}", now_s=0)
    assert [refusals.covers(f"gw-{number}", now_s=9) for number in range(3)] == [False, True, True]
    assert not refusals.covers("gw-2", now_s=10)


def test_a_frame_on_the_wrong_topic_is_a_dead_letter() -> None:
    """The topic is what the broker has checked; the header must agree with it."""
    reading_frame = Chain("gw-a", "readings").seal([movement(clock.pack(NOW_MS), "receive", "@supplier", "A-1")])
    decoded, letters = decode([arrival(reading_frame.payload), arrival(b"{")])
    assert decoded == []
    assert ["on the topic of ledger" in letter.reason for letter in letters] == [True, False]


@pytest.mark.parametrize("url", ["http://broker", "mqtt://", "broker:1883"])
def test_a_wrong_broker_address_is_refused(url: str) -> None:
    """With a hint of how one looks."""
    with pytest.raises(ValueError, match="not a broker's address"):
        BrokerAddress.parse(url)


@dataclass
class MemoryStore:
    """A store in memory: judges frames like the real one; can be away."""

    away: bool = False
    gateway: Gateway = field(default_factory=lambda: Gateway(1, "gw-a", 1, 1, active=True))
    cursors: dict[Any, Any] = field(default_factory=dict)
    failed: asyncio.Event = field(default_factory=asyncio.Event)

    def merge(self, frames: Sequence[ArrivedFrame]) -> MergeReport:
        """Part of `Merger`."""
        if self.away:
            self.loop.call_soon_threadsafe(self.failed.set)
            raise DatabaseUnavailable
        planned = make(frames, {"gw-a": self.gateway}, self.cursors)
        self.cursors |= {key: outcome.receiver.cursor for key, outcome in planned.report.streams.items()}
        return planned.report

    def charge(self, merged: Mapping[int, int]) -> dict[int, Credit]:
        """Part of `QuotaStore`: nobody has a quota."""
        del merged
        return {}

    def quarantine(self, letters: Sequence[DeadLetter]) -> None:
        """Part of `ContactStore`."""

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()


@dataclass
class AckCollector:
    """A link that keeps what is published."""

    acks: list[Ack] = field(default_factory=list)

    def publish(self, topic: str, payload: bytes) -> None:
        """Part of `Publishing`."""
        assert topic.endswith("/gw-a/down/ack")
        self.acks.append(Ack.decode(payload))


async def test_while_the_database_is_away_windows_are_zero_and_nothing_is_acknowledged() -> None:
    """The gateway is told once to hold its frames, and the frame in hand is merged when the database is back."""
    store, link = MemoryStore(), AckCollector()
    settings = IngestSettings(batch_delay_ms=0)
    inbox = Inbox(frames_max=16, bytes_max=1 << 20)
    merging = Merging(
        settings, inbox=inbox, merger=cast("Any", store), letters=cast("Any", store), link=link,
        metrics=WorkerMetrics(), quotas=store,
    )  # fmt: skip
    chain = Chain("gw-a")
    payloads = [chain.seal([movement(clock.pack(NOW_MS, n), "receive", "@supplier", "A-1")]).payload for n in range(2)]
    async with asyncio.TaskGroup() as group:
        running = group.create_task(merging.run(), name="merging")
        merging.offer(arrival(payloads[0]))
        await merging.drained()
        store.away = True
        merging.offer(arrival(payloads[1]))
        await store.failed.wait()
        store.failed.clear()
        await store.failed.wait()
        store.away = False
        await merging.drained()
        running.cancel()
    assert [(ack.frame, ack.window) for ack in link.acks] == [(1, 16), (1, 0), (2, 16)]

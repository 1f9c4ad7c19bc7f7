"""The worker's decisions, without servers: queue bounds, windows, leases, denylist, answers while the store is away."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_ingest.inbound import Inbound
from cloud_ingest.leases import rebalance
from cloud_ingest.merge.denylist import Denylist
from cloud_ingest.merge.inbox import Inbox, window
from cloud_ingest.merge.loop import MergeLoop, decode
from cloud_store.base.connection import answers
from cloud_store.base.errors import DatabaseUnavailable
from cloud_store.base.gateways import Gateway
from cloud_store.base.leases import Survey
from cloud_store.merge import dead_letters
from cloud_store.merge.arrivals import ArrivedFrame, MergeReport
from cloud_store.merge.dead_letters import DeadLetter
from cloud_store.merge.plan import make
from testbed.store import Failed, context, running
from tests.cloud_store.histories import NOW_MS, Chain, movement
from wire_protocol import clock
from wire_protocol.address import BrokerAddress
from wire_protocol.messages import Ack
from wire_protocol.topics import SHARDS, Channel


def arrival(payload: bytes = b"x", gateway: str = "gw-a") -> Inbound:
    """A payload on the ledger topic of a gateway."""
    return Inbound(gateway, Channel.LEDGER, "topic", payload, NOW_MS)


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
    inbox.settled([(each.sender, each.payload) for each in taken])
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
    order = [f"{frame.sender}{frame.payload.decode()}" for frame in taken]
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
def test_denylist_end_and_are_bounded() -> None:
    """A refused gateway is ignored for a while; the memory of it has a bound."""
    denylist = Denylist(quiet_s=10, gateways_max=2)
    for number in range(3):
        denylist.add(f"gw-{number}", now_s=0)
    assert [denylist.covers(f"gw-{number}", now_s=9) for number in range(3)] == [False, True, True]
    assert not denylist.covers("gw-2", now_s=10)


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
    cannot_stand: set[bytes] = field(default_factory=set)

    async def merge(self, frames: Sequence[ArrivedFrame]) -> MergeReport:
        """As a worker merges."""
        if self.away:
            self.failed.set()
            raise DatabaseUnavailable
        if any(arrived.payload in self.cannot_stand for arrived in frames):
            raise RuntimeError("a defect of ours")
        registered = {name: replace(self.gateway, name=name) for name in ("gw-a", "gw-b", "gw-c")}
        planned = make(frames, registered, self.cursors)
        self.cursors |= {key: outcome.receiver.cursor for key, outcome in planned.report.streams.items()}
        return planned.report


@dataclass
class AckCollector:
    """A link that keeps what is published."""

    acks: list[Ack] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)

    def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """As the worker's link."""
        del qos, retain
        assert topic.endswith("/down/ack")
        self.topics.append(topic)
        self.acks.append(Ack.decode(payload))


def sealed(gateway: str, number: int) -> list[bytes]:
    """Frames of one movement each."""
    chain = Chain(gateway)
    return [chain.seal([movement(clock.pack(NOW_MS, n), "receive", "@supplier", "A-1")]).payload for n in range(number)]


async def test_while_the_database_is_away_windows_are_zero_and_nothing_is_acknowledged() -> None:
    """The gateway is told once to hold its frames, and the frame in hand is merged when the database is back."""
    store, link = MemoryStore(), AckCollector()
    inbox = Inbox(frames_max=16, bytes_max=1 << 20)
    merging = MergeLoop(
        context({answers: lambda: None}, link.publish, batch_delay_ms=0), inbox=inbox, merge_frames=store.merge
    )
    payloads = sealed("gw-a", 2)
    async with running([merging.run()]), asyncio.timeout(30):
        merging.offer(arrival(payloads[0]))
        await merging.drained()
        store.away = True
        merging.offer(arrival(payloads[1]))
        await store.failed.wait()
        store.failed.clear()
        await store.failed.wait()
        store.away = False
        await merging.drained()
    assert [(ack.frame, ack.window) for ack in link.acks] == [(1, 16), (1, 0), (2, 16)]


async def test_a_frame_that_the_merge_cannot_stand_is_set_aside_and_the_others_are_merged() -> None:
    """A defect of ours that one payload brings out must not stop every gateway's merge, nor end the worker."""
    store, link, letters = MemoryStore(), AckCollector(), list[DeadLetter]()
    stands = context({dead_letters.add: letters.extend}, link.publish, batch_delay_ms=50)
    merging = MergeLoop(stands, inbox=Inbox(frames_max=16, bytes_max=1 << 20), merge_frames=store.merge)
    evil, good = sealed("gw-a", 1), sealed("gw-b", 3)
    store.cannot_stand = set(evil)
    for payload, gateway in [(evil[0], "gw-a"), *((payload, "gw-b") for payload in good)]:
        merging.offer(arrival(payload, gateway))
    async with running([merging.run()]), asyncio.timeout(30):
        await merging.drained()
    assert {topic.split("/")[3] for topic in link.topics} == {"gw-b"}
    assert link.acks[-1].frame == 3
    assert [letter.gateway for letter in letters] == ["gw-a"]
    assert isinstance(stands.failed, Failed)
    assert [(service, gateway) for service, gateway, _ in stands.failed] == [("merge", "gw-a")]

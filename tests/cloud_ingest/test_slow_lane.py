"""Frames that cost the database too much time: broken when they hold up other gateways, or are tried forever."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from cloud_ingest.mailbox import ATTEMPTS_MAX, Mailbox, serve
from cloud_ingest.merge.denylist import Strikes
from cloud_ingest.merge.inbox import Inbox
from cloud_ingest.merge.loop import MergeLoop
from cloud_ingest.merge.slow_lane import LATE_COUNTS_MAX, SLOW_S, Pace
from cloud_store.base.connection import answers
from cloud_store.base.errors import DatabaseUnavailable, StoreTimeout
from cloud_store.merge import dead_letters
from cloud_store.merge.arrivals import ArrivedFrame, MergeReport
from cloud_store.merge.dead_letters import DeadLetter
from testbed.store import Failed, context, running
from testbed.turned_loop import now_s, pass_time, turned
from tests.cloud_ingest.test_logic import AckCollector, MemoryStore, arrival, sealed


@dataclass
class CostlyStore(MemoryStore):
    """A store in memory that takes its time for some frames, in each of its two lanes."""

    fast_s: dict[bytes, float] = field(default_factory=dict)
    slow_s: dict[bytes, float] = field(default_factory=dict)
    apart: list[list[str]] = field(default_factory=list)
    late: dict[bytes, int] = field(default_factory=dict)
    fast_limit_s: float = 5.0
    slow_limit_s: float = 30.0

    async def merge(self, frames: Sequence[ArrivedFrame]) -> MergeReport:
        """In the fast lane."""
        await self._spend(max(self.fast_s.get(arrived.payload, 0) for arrived in frames), self.fast_limit_s)
        return await self._merge(frames)

    async def merge_apart(self, frames: Sequence[ArrivedFrame]) -> MergeReport:
        """In the slow lane."""
        self.apart.append(sorted({arrived.gateway for arrived in frames}))
        costs = [self.slow_s.get(arrived.payload, self.fast_s.get(arrived.payload, 0)) for arrived in frames]
        await self._spend(max(costs), self.slow_limit_s)
        return await self._merge(frames)

    async def _merge(self, frames: Sequence[ArrivedFrame]) -> MergeReport:
        report = await super().merge(frames)
        for arrived in frames:
            if (counts := self.late.get(arrived.payload, 0)) > 0:
                report.late_counts[arrived.gateway] = report.late_counts.get(arrived.gateway, 0) + counts
        return report

    async def _spend(self, seconds: float, limit_s: float) -> None:
        await asyncio.sleep(min(seconds, limit_s))
        if seconds > limit_s:
            raise StoreTimeout


def merge_loop(store: CostlyStore, link: AckCollector, letters: list[DeadLetter], **settings: int) -> MergeLoop:
    """A loop with two lanes on a store in memory."""
    stands = context(
        {dead_letters.add: letters.extend, answers: lambda: None}, link.publish, now_s, batch_delay_ms=0, **settings
    )
    inbox = Inbox(frames_max=1_000, bytes_max=1 << 20)
    return MergeLoop(stands, inbox=inbox, merge_frames=store.merge, merge_apart=store.merge_apart)


def acked(link: AckCollector, gateway: str) -> int:
    """The last frame of a gateway that was acknowledged."""
    frames = [ack.frame for topic, ack in zip(link.topics, link.acks, strict=True) if topic.split("/")[3] == gateway]
    return max(frames, default=0)


@turned
async def test_a_frame_that_takes_too_long_costs_the_others_one_wait_and_is_merged_apart() -> None:
    """The others' next frames do not wait for it; it gets six times as long, and is acknowledged."""
    store, link = CostlyStore(), AckCollector()
    slow, quick = sealed("gw-a", 3), sealed("gw-b", 200)
    store.fast_s[slow[0]] = 20.0
    merging = merge_loop(store, link, [])
    async with running([merging.run()]):
        merging.offer(arrival(slow[0], "gw-a"))
        await pass_time(store.fast_limit_s + 0.1)
        for number, payload in enumerate(quick[:100], 1):
            merging.offer(arrival(payload, "gw-b"))
            await pass_time(0.1)
            assert acked(link, "gw-b") == number, "it waited for another gateway"
        assert acked(link, "gw-a") == 0
        await pass_time(20)
        assert acked(link, "gw-a") == 1
        for payload in slow[1:]:
            merging.offer(arrival(payload, "gw-a"))
        await pass_time(1)
        assert acked(link, "gw-a") == 3
    assert store.apart[:1] == [["gw-a"]]


@turned
async def test_a_gateway_leaves_the_slow_lane_when_its_merges_are_quick() -> None:
    """A machine that was busy for a moment must not leave gateways one by one in the slow lane for good."""
    store, link = CostlyStore(), AckCollector()
    payloads = sealed("gw-a", 3)
    store.fast_s[payloads[0]] = 20 * SLOW_S
    merging = merge_loop(store, link, [])
    async with running([merging.run()]):
        for payload in payloads:
            merging.offer(arrival(payload, "gw-a"))
            await pass_time(3)
    assert acked(link, "gw-a") == 3
    assert store.apart == [["gw-a"]], "the second frame was merged apart, and quick; the third was merged as usual"


@turned
async def test_a_gateway_whose_counts_come_late_is_merged_apart_as_long_as_they_do() -> None:
    """Each costs the database little more than is usual, and four a second would still be everybody's wait."""
    store, link = CostlyStore(), AckCollector()
    late, quick = sealed("gw-a", 6), sealed("gw-b", 6)
    store.late = dict.fromkeys(late[:4], LATE_COUNTS_MAX + 1) | dict.fromkeys(quick, LATE_COUNTS_MAX)
    merging = merge_loop(store, link, [])
    async with running([merging.run()]):
        for number, payloads in enumerate(zip(late, quick, strict=True), 1):
            for gateway, payload in zip(("gw-a", "gw-b"), payloads, strict=True):
                merging.offer(arrival(payload, gateway))
                await pass_time(1)
                assert acked(link, gateway) == number
    assert store.apart == [["gw-a"]] * 4, (
        "the first was not known, and after a frame without late counts it is as usual"
    )


def test_a_machine_that_is_slow_makes_nobody_slow() -> None:
    """What is usual follows what is measured, and one slow gateway does not make it."""
    store = [ArrivedFrame.read("gw-a", "ledger", payload, 0) for payload in sealed("gw-a", 20)]
    pace = Pace()
    for _ in range(200):
        pace.learn(store, 0.01)
    assert not pace.is_slow(store, 0.08)
    assert pace.is_slow(store, 0.5)
    for _ in range(10):
        pace.learn(store[:1], 60.0)  # a hostile frame now and then
        for _ in range(20):
            pace.learn(store, 0.01)
    assert pace.is_slow(store[:1], 0.5)
    for _ in range(200):
        pace.learn(store, 1.0)
    assert not pace.is_slow(store, 1.5)


@turned
async def test_what_the_database_never_finishes_is_quarantined_while_the_others_go_on() -> None:
    """It is tried a bounded number of times; then its gateway is not listened to for a while, and it is said why."""
    store, link, letters = CostlyStore(), AckCollector(), list[DeadLetter]()
    evil, good = sealed("gw-a", 2), sealed("gw-b", 300)
    store.fast_s[evil[0]] = 1e9
    merging = merge_loop(store, link, letters)
    async with running([merging.run()]):
        for payload in evil:
            merging.offer(arrival(payload, "gw-a"))
        await pass_time(store.fast_limit_s + 1)
        listened_to = []
        for payload in good:
            merging.offer(arrival(payload, "gw-b"))
            await pass_time(1)
            if letters:
                listened_to.append(merging.offer(arrival(evil[0], "gw-a")))
        assert acked(link, "gw-b") == len(good)
        assert letters[0].gateway == "gw-a"
        assert "StoreTimeout" in letters[0].reason
        assert listened_to[:50] == [False] * 50, "it would cost as much again"
    failed = merging._context.failed
    assert isinstance(failed, Failed)
    assert {(service, gateway) for service, gateway, _ in failed} == {("merge", "gw-a")}


@turned
async def test_a_batch_that_breaks_each_connection_is_taken_apart_when_the_database_answers_others() -> None:
    """Not every failure that looks like an absent server is one; a batch alone must not be tried forever."""
    store, link, letters = MemoryStore(), AckCollector(), list[DeadLetter]()
    evil, good = sealed("gw-a", 1), sealed("gw-b", 3)

    async def merge(frames: Sequence[ArrivedFrame]) -> MergeReport:
        if any(arrived.payload in evil for arrived in frames):
            raise DatabaseUnavailable("server closed the connection unexpectedly")
        return await store.merge(frames)

    stands = context({dead_letters.add: letters.extend, answers: lambda: None}, link.publish, now_s, batch_delay_ms=50)
    merging = MergeLoop(stands, inbox=Inbox(frames_max=16, bytes_max=1 << 20), merge_frames=merge)
    for payload, gateway in [(evil[0], "gw-a"), *((payload, "gw-b") for payload in good)]:
        merging.offer(arrival(payload, gateway))
    async with running([merging.run()]):
        await pass_time(30)
    assert acked(link, "gw-b") == 3
    assert [letter.gateway for letter in letters] == ["gw-a"]


@turned
async def test_while_the_database_answers_nobody_nothing_is_quarantined() -> None:
    """An absent server is nobody's fault, for weeks if need be."""
    store, link, letters = MemoryStore(away=True), AckCollector(), list[DeadLetter]()

    def away() -> None:
        raise DatabaseUnavailable

    stands = context({dead_letters.add: letters.extend, answers: away}, link.publish, now_s, batch_delay_ms=0)
    merging = MergeLoop(stands, inbox=Inbox(frames_max=16, bytes_max=1 << 20), merge_frames=store.merge)
    merging.offer(arrival(sealed("gw-a", 1)[0], "gw-a"))
    async with running([merging.run()]):
        await pass_time(600)
        assert letters == []
        store.away = False
        await pass_time(10)
    assert acked(link, "gw-a") == 1


@turned
async def test_an_outage_that_ends_between_an_attempt_and_a_question_costs_no_frame() -> None:
    """Attempts of before the database came back say nothing about the batch."""
    store, link, letters = MemoryStore(away=True), AckCollector(), list[DeadLetter]()
    questions = 0

    def back() -> None:
        nonlocal questions
        questions += 1
        if questions < 8:
            raise DatabaseUnavailable
        store.away = False

    stands = context({dead_letters.add: letters.extend, answers: back}, link.publish, now_s, batch_delay_ms=0)
    merging = MergeLoop(stands, inbox=Inbox(frames_max=16, bytes_max=1 << 20), merge_frames=store.merge)
    merging.offer(arrival(sealed("gw-a", 1)[0], "gw-a"))
    async with running([merging.run()]):
        await pass_time(60)
    assert letters == []
    assert acked(link, "gw-a") == 1


@turned
async def test_a_database_that_answers_and_cannot_write_costs_no_frame() -> None:
    """A full disk and a read-only replica answer questions; when they can write again, everybody is listened to."""
    store, link, letters = MemoryStore(away=True), AckCollector(), list[DeadLetter]()

    def add(more: list[DeadLetter]) -> None:
        if store.away:
            raise DatabaseUnavailable("could not extend file: No space left on device")
        letters.extend(more)

    stands = context({dead_letters.add: add, answers: lambda: None}, link.publish, now_s, batch_delay_ms=50)
    merging = MergeLoop(stands, inbox=Inbox(frames_max=16, bytes_max=1 << 20), merge_frames=store.merge)
    for gateway in ("gw-a", "gw-b"):
        merging.offer(arrival(sealed(gateway, 1)[0], gateway))
    async with running([merging.run()]):
        await pass_time(600)
        store.away = False
        await pass_time(10)
    assert letters == []
    assert isinstance(stands.failed, Failed)
    assert list(stands.failed) == []
    assert [acked(link, gateway) for gateway in ("gw-a", "gw-b")] == [1, 1]


@turned
async def test_an_item_that_the_database_never_finishes_is_dropped_and_one_of_an_absent_database_is_not() -> None:
    """The same of every service."""
    box: Mailbox[str, int] = Mailbox("box", items_max=10)
    served, failed = list[str](), Failed()

    async def step(gateway: str, _value: int) -> None:
        served.append(gateway)
        if gateway == "gw-evil":
            raise StoreTimeout
        if gateway == "gw-away" and len(served) < 40:
            raise DatabaseUnavailable

    for gateway in ("gw-evil", "gw-away", "gw-b"):
        box.put(gateway, 1)
    async with running([serve(box, step, failed)]):
        await pass_time(60)
    assert served.count("gw-evil") == ATTEMPTS_MAX
    assert served.count("gw-b") == 1
    assert len(served) == 40, "the absent database's item was tried until it worked"
    assert [(service, gateway) for service, gateway, _ in failed] == [("box", "gw-evil")]


@pytest.mark.bound("cloud.bad_frames_per_minute_max")
@turned
async def test_a_gateway_that_sends_nothing_but_bad_frames_is_ignored_for_a_while() -> None:
    """It would fill the dead letters, and they are not in its quota."""
    store, link, letters = CostlyStore(), AckCollector(), list[DeadLetter]()
    merging = merge_loop(store, link, letters, bad_frames_per_minute_max=10)
    async with running([merging.run()]):
        taken = 0
        for number in range(100):
            taken += merging.offer(arrival(b"no frame %d" % number, "gw-a"))
            await pass_time(0.1)
        merging.offer(arrival(sealed("gw-b", 1)[0], "gw-b"))
        await pass_time(1)
    assert taken == 11 == len(letters)
    assert acked(link, "gw-b") == 1
    failed = merging._context.failed
    assert isinstance(failed, Failed)
    assert [(service, gateway) for service, gateway, _ in failed] == [("merge", "gw-a")], "said once"


def test_strikes_are_counted_in_minutes_and_bounded() -> None:
    """One bad frame now and then is nobody's attack."""
    strikes = Strikes(3, gateways_max=2)
    assert [strikes.exceeded("gw-a", 1, at_s) for at_s in (0.0, 1.0, 2.0, 3.0)] == [False, False, False, True]
    assert not strikes.exceeded("gw-a", 1, 64.0)
    for gateway in ("gw-b", "gw-c", "gw-d"):
        strikes.exceeded(gateway, 1, 65.0)
    assert len(strikes._minutes) == 2

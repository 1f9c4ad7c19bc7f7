"""The throttle on a clock turned by hand. Broken when a tenant above its quota is not slowed, or others are.

The fleet here is worse than a real one: every gateway always has full frames, and sends the moment it may.
"""

import heapq
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from cloud_ingest.merge import throttle
from cloud_ingest.merge.throttle import Throttle
from cloud_store.base.errors import DatabaseUnavailable
from cloud_store.merge.arrivals import LogKey, MergeReport
from cloud_store.tenancy.quotas import BURST_S, BucketLevel

FRAME = 100
ROOM = 16
RESEND_S = 2.0
NOISY, FREE = 1, 2


@dataclass
class Buckets:
    """The database's purses, for one tenant with a quota."""

    clock: list[float]
    per_s: float = 1_000.0
    entries: float = 2_000.0
    at_s: float = 0.0
    away: bool = False
    limited: bool = True
    charged: Counter[int] = field(default_factory=Counter)

    async def charge(self, merged: Mapping[int, int]) -> dict[int, BucketLevel]:
        """As `cloud_store.tenancy.quotas.charge`."""
        if self.away:
            raise DatabaseUnavailable
        self.charged.update(merged)
        if NOISY not in merged or not self.limited:
            return {}
        now = self.clock[0]
        filled = min(self.per_s * BURST_S, self.entries + self.per_s * (now - self.at_s))
        self.entries, self.at_s = filled - merged[NOISY], now
        return {NOISY: BucketLevel(self.entries, self.per_s)}


def log_of(name: str) -> LogKey:
    """The ledger of a gateway."""
    return LogKey(name, "ledger", "epoch")


@dataclass
class Fleet:
    """Greedy gateways and a worker that merges at once; windows are what the throttle says."""

    gateways: dict[str, int]
    clock: list[float] = field(default_factory=lambda: [0.0])
    arriving: list[tuple[float, int, str]] = field(default_factory=list)
    merged: Counter[int] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    windows: dict[str, int] = field(default_factory=dict)
    flying: Counter[str] = field(default_factory=Counter)
    number: int = 0

    def __post_init__(self) -> None:
        self.buckets = Buckets(self.clock)
        self.throttle = Throttle(self.buckets.charge, self.let_on, now_s=lambda: self.clock[0])
        for name in self.gateways:
            self.told(name, 4)

    def told(self, name: str, window: int) -> None:
        """A gateway is told a window: it fills it, or waits for its resend timer."""
        self.windows[name] = window
        while self.flying[name] < window:
            self.send(name, 0.01)
        if not self.flying[name]:
            self.send(name, RESEND_S)

    def send(self, name: str, after_s: float) -> None:
        """A frame is on its way; or will be, when the timer runs out."""
        self.number += 1
        self.flying[name] += 1
        heapq.heappush(self.arriving, (self.clock[0] + after_s, self.number, name))

    def let_on(self, logs: Sequence[LogKey], frames: int) -> None:
        """Part of the worker: the frame that waited for the timer goes now."""
        for log in logs:
            for at in [item for item in self.arriving if item[2] == log.gateway and item[0] > self.clock[0] + 0.1]:
                self.arriving.remove(at)
                self.flying[log.gateway] -= 1
            heapq.heapify(self.arriving)
            self.told(log.gateway, frames)

    async def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.clock[0] + seconds
        tick_s = self.clock[0]
        while self.clock[0] < until:
            if self.arriving and self.arriving[0][0] <= tick_s:
                self.clock[0], _, name = heapq.heappop(self.arriving)
                self.merge(name)
            else:
                self.clock[0] = max(self.clock[0], tick_s)
                tick_s += throttle.TICK_S
                await self.throttle.tick()

    def merge(self, name: str) -> None:
        """A frame is merged and acknowledged."""
        tenant = self.gateways[name]
        self.flying[name] -= 1
        self.merged[tenant] += FRAME
        self.turns[name] += 1
        report = MergeReport(tenants={name: tenant})
        report.take(name, 1, FRAME)
        self.throttle.merged(report)
        self.told(name, self.throttle.window(log_of(name), ROOM))


async def test_a_greedy_tenant_gets_its_quota_and_no_more() -> None:
    """Twenty gateways that would send 40,000 entries a second get the 1,000 of their tenant, in turn."""
    fleet = Fleet({f"gw-{number}": NOISY for number in range(20)})
    await fleet.run(10)
    before, turns = fleet.merged[NOISY], fleet.turns.copy()
    await fleet.run(60)
    # One frame of each gateway in two seconds comes whatever it is told, and is paid for like any other.
    assert fleet.merged[NOISY] - before == pytest.approx(60 * 1_000, rel=0.1)
    shares = [fleet.turns[name] - turns[name] for name in fleet.gateways]
    assert max(shares) <= 1.5 * min(shares)
    assert fleet.buckets.charged[NOISY] == pytest.approx(fleet.merged[NOISY], abs=3 * FRAME * len(fleet.gateways))


async def test_others_keep_their_windows() -> None:
    """A tenant without a quota is told what it would be told alone."""
    fleet = Fleet({"gw-noisy": NOISY} | {"gw-free": FREE})
    await fleet.run(5)
    assert fleet.throttle.window(log_of("gw-free"), ROOM) == ROOM
    assert fleet.throttle.window(log_of("gw-noisy"), ROOM) < ROOM
    assert fleet.merged[FREE] > 20 * fleet.merged[NOISY]


async def test_within_the_quota_windows_are_full() -> None:
    """A tenant that stays below it notices nothing."""
    clock = [0.0]
    worker = Throttle(Buckets(clock).charge, lambda *_: pytest.fail("nobody waits"), now_s=lambda: clock[0])
    for _ in range(400):
        clock[0] += 0.25
        report = MergeReport(tenants={"gw-1": NOISY})
        report.take("gw-1", 1, 10)
        worker.merged(report)
        await worker.tick()
        assert worker.window(log_of("gw-1"), ROOM) == ROOM


async def test_who_waits_is_let_on_when_the_quota_is_lifted() -> None:
    """Otherwise it would wait for its own timer, a minute in the worst case."""
    fleet = Fleet({"gw-1": NOISY})
    await fleet.run(3)
    fleet.buckets.limited = False
    await fleet.throttle.tick()
    assert fleet.throttle.window(log_of("gw-1"), ROOM) == ROOM
    assert fleet.windows["gw-1"] == 1


async def test_what_could_not_be_paid_is_paid_later() -> None:
    """A database that is away makes nobody's entries free."""
    clock = [0.0]
    buckets = Buckets(clock, away=True)
    worker = Throttle(buckets.charge, lambda *_: None, now_s=lambda: clock[0])
    report = MergeReport(tenants={"gw-1": NOISY})
    report.take("gw-1", 5, 500)
    worker.merged(report)
    with pytest.raises(DatabaseUnavailable):
        await worker.tick()
    buckets.away = False
    await worker.tick()
    assert buckets.charged == {NOISY: 500}


@pytest.mark.bound("cloud_ingest.merge.throttle.GATEWAYS_REMEMBERED_MAX")
def test_the_memory_of_gateways_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten; its next frame says again whose it is."""
    monkeypatch.setattr(throttle, "GATEWAYS_REMEMBERED_MAX", 10)
    worker = Throttle(Buckets([0.0]).charge, lambda *_: None)
    names = [f"gw-{number}" for number in range(random.Random(1).randint(20, 30))]
    for name in names:
        worker.merged(MergeReport(tenants={name: NOISY}))
    assert list(worker._tenants) == names[-10:]

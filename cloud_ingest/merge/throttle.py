"""The throttle of a tenant above its ingest quota: its gateways get smaller windows, and nothing is refused.

Each tenant with a quota has a bucket (`cloud_store.tenancy.quotas`), shared by all workers. While there is plenty in
it, windows are what they are for everybody; as it runs low they shrink; when it is empty they are zero, and gateways
are released in turn, a frame each, as fast as the bucket fills.

A gateway with a window of zero still sends one frame when its resend timer runs out, in case an acknowledgement was
lost. So a quota cannot hold a tenant below one frame of each gateway in two seconds.

Invariant: what arrives is merged. Invariant: tenants without a quota are never looked at.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from cloud_ingest.mailbox import Report, every
from cloud_store.merge.arrivals import LogKey, MergeReport
from cloud_store.tenancy.quotas import BURST_S, BucketLevel

TICK_S: Final = 0.25
IDLE_S: Final = 30.0
RESERVED_KEPT: Final = 0.8  # of what was granted and not sent, each tick: a gateway may have nothing left to send
GATEWAYS_REMEMBERED_MAX: Final = 100_000
_LOG = structlog.get_logger()


@dataclass(slots=True)
class _Bucket:
    """What a worker knows of a tenant's bucket between two looks at it."""

    entries: float
    per_s: float
    at_s: float
    reserved: float = 0.0
    frame_entries: float = 100.0
    logs: dict[LogKey, float] = field(default_factory=dict)
    held: dict[LogKey, None] = field(default_factory=dict)

    def left(self, now_s: float) -> float:
        """Entries that may still be asked for."""
        filled = min(self.per_s * BURST_S, self.entries + self.per_s * (now_s - self.at_s))
        return filled - self.reserved

    def spend(self, frames: int, entries: int) -> None:
        self.entries -= entries
        self.reserved = max(0.0, self.reserved - entries)
        self.frame_entries += 0.2 * (entries / frames - self.frame_entries)


class Throttle:
    """Windows of tenants with a quota.

    Args:
        charge: takes entries out of tenants' token buckets; see `cloud_store.tenancy.quotas`.
        release: gives gateways a window of a number of frames.
        now_s: a clock that is never set.
    """

    def __init__(
        self,
        charge: Callable[[Mapping[int, int]], Awaitable[dict[int, BucketLevel]]],
        release: Callable[[Sequence[LogKey], int], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._charge, self._release, self._now_s = charge, release, now_s
        self._tenants: dict[str, int] = {}
        self._spent: dict[int, int] = {}
        self._buckets: dict[int, _Bucket] = {}

    def merged(self, report: MergeReport) -> None:
        """Note what a merge has taken in, and whose it is."""
        for gateway, tenant in report.tenants.items():
            if gateway not in self._tenants and len(self._tenants) >= GATEWAYS_REMEMBERED_MAX:
                del self._tenants[next(iter(self._tenants))]
            self._tenants[gateway] = tenant
        for gateway, (frames, entries) in report.taken.items():
            tenant = report.tenants[gateway]
            self._spent[tenant] = self._spent.get(tenant, 0) + entries
            if tenant in self._buckets:
                self._buckets[tenant].spend(frames, entries)
        for tenant, entries in report.surcharge.items():
            self._spent[tenant] = self._spent.get(tenant, 0) + entries

    def window(self, log: LogKey, room: int) -> int:
        """How many frames the gateway of a log may have in flight, where others may have `room`."""
        bucket = self._buckets.get(self._tenants.get(log.gateway, 0))
        if bucket is None:
            return room
        now = self._now_s()
        bucket.logs[log] = now
        share = bucket.left(now) / (bucket.frame_entries * len(bucket.logs))
        if share >= 1 and not bucket.held:
            return min(room, int(share))
        bucket.held[log] = None
        return 0

    async def run(self, failed: Report) -> None:
        """Look at the buckets until cancelled."""
        await every(TICK_S, "throttle", self.tick, failed)

    async def tick(self) -> None:
        """Pay for what was merged, and release the gateways that the buckets can afford."""
        spent, self._spent = self._spent, {}
        wanted = dict.fromkeys(self._buckets, 0) | spent
        if not wanted:
            return
        try:
            credits_ = await self._charge(wanted)
        except BaseException:
            for tenant, entries in spent.items():
                self._spent[tenant] = self._spent.get(tenant, 0) + entries
            raise
        now = self._now_s()
        for tenant in self._buckets.keys() - credits_.keys():
            self._release(list(self._buckets.pop(tenant).held), 1)  # its quota was lifted
        for tenant, credit in credits_.items():
            bucket = self._buckets.setdefault(tenant, _Bucket(credit.entries, credit.per_s, now))
            # What was merged while the database was asked is paid for with the next look.
            bucket.entries, bucket.per_s, bucket.at_s = credit.entries - self._spent.get(tenant, 0), credit.per_s, now
            self._release_in_turn(bucket, now)

    def _release_in_turn(self, bucket: _Bucket, now: float) -> None:
        bucket.reserved *= RESERVED_KEPT
        for log in [log for log, seen_s in bucket.logs.items() if now - seen_s > IDLE_S]:
            del bucket.logs[log]
        chosen = []
        while bucket.held and bucket.left(now) > 0:
            log = next(iter(bucket.held))
            del bucket.held[log]
            bucket.reserved += bucket.frame_entries
            chosen.append(log)
        if chosen:
            self._release(chosen, 1)

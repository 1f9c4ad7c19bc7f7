"""Pacing: a tenant above its ingest quota is slowed down by the windows its gateways are told, and by nothing else.

Each tenant with a quota has a purse (`cloud_store.tenancy.quotas`), shared by all workers. While there is plenty in
it, windows are what they are for everybody; as it runs low they shrink; when it is empty they are zero, and gateways
are let on in turn, a frame each, as fast as the purse fills.

A gateway with a window of zero still sends one frame when its resend timer runs out, in case an acknowledgement was
lost. So a quota cannot hold a tenant below one frame of each gateway in two seconds.

Invariant: what arrives is merged. Invariant: tenants without a quota are never looked at.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from cloud_ingest.threads import uninterrupted
from cloud_store.base.errors import StoreError
from cloud_store.merge.arrivals import LogKey, MergeReport
from cloud_store.tenancy.quotas import PURSE_S, Credit

TICK_S: Final = 0.25
IDLE_S: Final = 30.0
RESERVED_KEPT: Final = 0.8  # of what was granted and not sent, each tick: a gateway may have nothing left to send
GATEWAYS_REMEMBERED_MAX: Final = 100_000
_LOG = structlog.get_logger()


class Charging(Protocol):
    """Where purses are."""

    def charge(self, merged: Mapping[int, int]) -> dict[int, Credit]:
        """Part of `QuotaStore`."""


@dataclass(slots=True)
class _Purse:
    """What a worker knows of a tenant's purse between two looks at it."""

    entries: float
    per_s: float
    at_s: float
    reserved: float = 0.0
    frame_entries: float = 100.0
    logs: dict[LogKey, float] = field(default_factory=dict)
    held: dict[LogKey, None] = field(default_factory=dict)

    def left(self, now_s: float) -> float:
        """Entries that may still be asked for."""
        filled = min(self.per_s * PURSE_S, self.entries + self.per_s * (now_s - self.at_s))
        return filled - self.reserved

    def spend(self, frames: int, entries: int) -> None:
        self.entries -= entries
        self.reserved = max(0.0, self.reserved - entries)
        self.frame_entries += 0.2 * (entries / frames - self.frame_entries)


class Pacing:
    """Windows of tenants with a quota. `let_on` tells gateways that they may send so many frames."""

    def __init__(
        self,
        store: Charging,
        let_on: Callable[[Sequence[LogKey], int], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._let_on, self._now_s = store, let_on, now_s
        self._tenants: dict[str, int] = {}
        self._spent: dict[int, int] = {}
        self._purses: dict[int, _Purse] = {}

    def merged(self, report: MergeReport) -> None:
        """Note what a merge has taken in, and whose it is."""
        for gateway, tenant in report.tenants.items():
            if gateway not in self._tenants and len(self._tenants) >= GATEWAYS_REMEMBERED_MAX:
                del self._tenants[next(iter(self._tenants))]
            self._tenants[gateway] = tenant
        for gateway, (frames, entries) in report.taken.items():
            tenant = report.tenants[gateway]
            self._spent[tenant] = self._spent.get(tenant, 0) + entries
            if tenant in self._purses:
                self._purses[tenant].spend(frames, entries)

    def window(self, log: LogKey, room: int) -> int:
        """How many frames the gateway of a log may have in flight, where others may have `room`."""
        purse = self._purses.get(self._tenants.get(log.gateway, 0))
        if purse is None:
            return room
        now = self._now_s()
        purse.logs[log] = now
        share = purse.left(now) / (purse.frame_entries * len(purse.logs))
        if share >= 1 and not purse.held:
            return min(room, int(share))
        purse.held[log] = None
        return 0

    async def run(self) -> None:
        """Look at the purses until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
            except StoreError as error:
                _LOG.warning("pacing_failed", reason=str(error), hint=error.hint)

    async def tick(self) -> None:
        """Pay for what was merged, and let on whom the purses can afford."""
        spent, self._spent = self._spent, {}
        wanted = dict.fromkeys(self._purses, 0) | spent
        if not wanted:
            return
        try:
            credits_ = await uninterrupted(lambda: self._store.charge(wanted))
        except StoreError:
            for tenant, entries in spent.items():
                self._spent[tenant] = self._spent.get(tenant, 0) + entries
            raise
        now = self._now_s()
        for tenant in self._purses.keys() - credits_.keys():
            self._let_on(list(self._purses.pop(tenant).held), 1)  # its quota was lifted
        for tenant, credit in credits_.items():
            purse = self._purses.setdefault(tenant, _Purse(credit.entries, credit.per_s, now))
            # What was merged while the database was asked is paid for with the next look.
            purse.entries, purse.per_s, purse.at_s = credit.entries - self._spent.get(tenant, 0), credit.per_s, now
            self._let_on_in_turn(purse, now)

    def _let_on_in_turn(self, purse: _Purse, now: float) -> None:
        purse.reserved *= RESERVED_KEPT
        for log in [log for log, heard in purse.logs.items() if now - heard > IDLE_S]:
            del purse.logs[log]
        chosen = []
        while purse.held and purse.left(now) > 0:
            log = next(iter(purse.held))
            del purse.held[log]
            purse.reserved += purse.frame_entries
            chosen.append(log)
        if chosen:
            self._let_on(chosen, 1)

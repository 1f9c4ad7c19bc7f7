"""The merge: frames in, rows, balances and cursors out, in one transaction for each batch.

Everything is ordered: cursors are locked by key, cells by key, dead letters by digest. What still collides with another
worker is tried again, a bounded number of times.

Invariant: an acknowledgement can be made only from a report, and a report is returned only after the commit.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloud_store.base import gateways, number_arrays
from cloud_store.base.connection import Connection, translated
from cloud_store.base.errors import MergeConflict, Unstorable
from cloud_store.base.gateways import Gateway
from cloud_store.base.ledger_numbers import CellKey
from cloud_store.merge import (
    alarms,
    balances,
    copying,
    cross_log_dedup,
    cursors,
    dead_letters,
    ledger_rows,
    plan,
    site_digests,
)
from cloud_store.merge.arrivals import ArrivedFrame, MergedFrame, MergeReport
from cloud_store.merge.balances import OutOfDomain
from cloud_store.merge.cells import Cells
from cloud_store.merge.dictionary import Dictionary, Vocabulary
from wire_protocol import proof
from wire_protocol.replication import NO_CURSOR
from wire_protocol.stock import Cell

ATTEMPTS_MAX: Final = 8
RETRY_DELAY_S: Final = 0.02
BYTES_PER_ENTRY: Final = 100  # of a frame, that a quota takes as much for as for an entry


class PlanStale(MergeConflict):
    """Another worker moved a cursor between planning and locking."""


@dataclass(slots=True)
class Merger:
    """Merges batches, and remembers the ids of words from one to the next.

    Not thread-safe: one merge at a time. `sleep` and `jitter` (a factor) are for the delay before a retry.
    """

    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = field(default=lambda: random.uniform(0.5, 1.5))  # noqa: S311 - not a secret
    _prepared: Connection | None = None
    _ids: Dictionary = field(default_factory=Dictionary)

    def merge(self, connection: Connection, frames: Sequence[ArrivedFrame]) -> MergeReport:
        """Merge a batch, in the order given.

        Raises:
            DatabaseUnavailable: nothing is known to be merged; the gateways send again.
            MergeConflict: other workers were in the way too many times.
        """
        with translated():
            self._prepare(connection)
        try:
            return self._merge_retrying(connection, frames)
        except Unstorable as error:
            return self._isolate(connection, frames, error)

    def _isolate(self, connection: Connection, frames: Sequence[ArrivedFrame], error: Unstorable) -> MergeReport:
        """Find the frame that the database cannot store and merge it without what is at fault; the rest as usual.

        Where cells would leave their domain, the entries of the frame that concern them are rejected, again and again
        while there are such cells; otherwise all of them.
        """
        if len(frames) == 1:
            cells: frozenset[Cell] = frozenset()
            while isinstance(error, OutOfDomain):
                beyond = cells | self._ids.named(error.cells)
                if beyond == cells:
                    break
                cells = beyond
                try:
                    return self._merge_retrying(connection, frames, beyond=cells)
                except Unstorable as again:
                    error = again
            return self._merge_retrying(connection, frames, unstorable=f"the database cannot store it: {error}")
        report = MergeReport()
        for half in (frames[: len(frames) // 2], frames[len(frames) // 2 :]):
            report.add(self.merge(connection, half))
        return report

    def _merge_retrying(
        self,
        connection: Connection,
        frames: Sequence[ArrivedFrame],
        *,
        unstorable: str | None = None,
        beyond: frozenset[Cell] = frozenset(),
    ) -> MergeReport:
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                self.sleep(RETRY_DELAY_S * 2**attempt * self.jitter())
            try:
                with translated():
                    report = self._merge_once(connection, frames, unstorable, beyond)
            except MergeConflict:
                continue
            report.retries = attempt
            return report
        raise MergeConflict(hint="The gateways send again; if this stays, look for long transactions.")

    def _merge_once(
        self,
        connection: Connection,
        frames: Sequence[ArrivedFrame],
        unstorable: str | None,
        beyond: frozenset[Cell],
    ) -> MergeReport:
        ids = self._ids
        registered = gateways.named(connection, {arrived.gateway for arrived in frames})
        planned = plan.make(frames, registered, cursors.read(connection, registered.values()), unstorable=unstorable)
        cross_log_dedup.take_out(connection, planned)
        if beyond:
            plan.reject_concerning(planned, beyond)
        vocabulary = Vocabulary()
        for frame in planned.merged:
            vocabulary.add(frame)
        for tenant, names in ids.resolve(connection, vocabulary).items():
            planned.report.charge(tenant, names)
        rows = ledger_rows.build(planned.merged, ids)
        planned.report.movements, planned.report.counts = rows.movement_count, len(rows.counts)
        planned.report.readings = len({(row[7], row[8], row[2]) for row in rows.readings})
        planned.report.merged = [
            MergedFrame(frame.arrived, frame.gateway.site_id, tuple(sorted(bad.seq for bad in frame.rejected)))
            for frame in planned.merged
            if frame.arrived.stream == "ledger"
        ]
        planned.report.tenants = {name: gateway.tenant_id for name, gateway in registered.items()}
        for frame in planned.merged:
            entries, size_bytes = frame.arrived.frame.header.count, len(frame.arrived.payload)
            planned.report.take(frame.gateway.name, 1, entries)
            planned.report.charge(frame.gateway.tenant_id, max(0, size_bytes // BYTES_PER_ENTRY - entries))
        for key, times in rows.bounded.items():
            planned.report.streams[key].bounded += times
        with connection.transaction():
            _require_fresh(connection, planned)
            _write(connection, planned, rows, ids)
        planned.report.late_counts = rows.late_counts
        return planned.report

    def _prepare(self, connection: Connection) -> None:
        if connection is self._prepared:
            return
        try:
            number_arrays.register(connection)
            copying.prepare(connection)
        except BaseException:
            # A disk without room: a session that is half prepared would fail forever.
            connection.close()
            raise
        # The server may be another, older one: see `dictionary`.
        self._prepared, self._ids = connection, Dictionary()


def _require_fresh(connection: Connection, planned: plan.Plan) -> None:
    """Lock what the plan depends on; it must be as it was.

    A log of which nothing will be merged and nothing was gets no row: a client that invents epochs leaves no trace.
    A log that has begun since is found, because its first merge held the cursors of the gateway's other logs, as we do
    now.
    """
    moving = plan.moved(planned)
    cursors.share_sites(connection, {frame.gateway.site_id for frame in planned.merged})
    wanted = {key: at for key, at in planned.cursors.items() if key in moving or at != NO_CURSOR}
    if wanted and cursors.lock(connection, planned.gateways, wanted) != wanted:
        raise PlanStale
    if moving and plan.ledger_logs(cursors.read(connection, planned.gateways.values())) != planned.known:
        raise PlanStale


def _write(connection: Connection, planned: plan.Plan, rows: ledger_rows.LedgerRows, ids: Dictionary) -> None:
    copying.movements(connection, rows)
    copying.readings(connection, rows)
    copying.hours(connection, rows)
    copying.frames(connection, planned.merged, ids)
    moved_cells, counted = balances.book(connection, rows)
    cross_log_dedup.remember_after(connection, planned)
    dead_letters.add(connection, list(_letters(planned)))
    alarms.raise_all(connection, alarms.of_plan(planned))
    if moved := plan.moved(planned):
        cursors.advance(connection, planned.gateways, moved)
    site_digests.keep(connection, _digest_changes(planned, ids, moved_cells, counted))


def _digest_changes(
    planned: plan.Plan, ids: Dictionary, moved: Cells, counted: Mapping[CellKey, int]
) -> dict[int, int]:
    """What is added to the digest of each site of the batch. Rejected entries change no stock, but the position."""
    changes = {frame.gateway.site_id: 0 for frame in planned.merged if frame.arrived.stream == "ledger"}
    cells, quantities = [*moved.keys(), *counted], [*moved.moved.tolist(), *counted.values()]
    sites = ids.sites_of(location_id for location_id, _, _ in cells)
    for site_id, hashed, quantity in zip(sites, ids.cell_hashes(cells), quantities, strict=True):
        changes[site_id] += hashed * quantity
    return {site_id: proof.add(0, change) for site_id, change in changes.items()}


def _letters(planned: plan.Plan) -> list[dead_letters.DeadLetter]:
    letters = [letter for frame in planned.merged for letter in dead_letters.of_entries(frame)]
    known: dict[str, Gateway] = planned.gateways
    letters += [
        dead_letters.of_frame(aside.arrived, aside.sentence, known.get(aside.arrived.gateway))
        for aside in planned.quarantined
    ]
    return letters

"""Ledger entries as rows: what is copied into `movement`, what is counted, and what moves in each cell.

Invariant: no database here. Movements stay columns; counts and readings are few and go one by one.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import repeat
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from cloud_store.base.ledger_numbers import HOUR_MS, MOVEMENT_KINDS, NO_LOT, CellKey
from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.cells import Hours, Moves, Sums
from cloud_store.merge.dictionary import Dictionary
from cloud_store.merge.frame_entries import MovementColumns, Numbers
from cloud_store.merge.plan import PlannedFrame
from wire_protocol import names, times
from wire_protocol.entries import Count, Reading
from wire_protocol.messages import ClampedTime

CLAMPED_REPORTED_MAX: Final = 200

# On the wire a timestamptz is a number of microseconds since 2000-01-01 UTC; binary COPY takes it as it is.
POSTGRES_EPOCH_MS: Final = 946_684_800_000
MovementRow: TypeAlias = tuple[Any, ...]


class Step(NamedTuple):
    """One entry's effect on a cell, in the order of the site's entries."""

    hlc: int
    gateway: str
    epoch: str
    seq: int
    moved: int
    found: dict[str, Any] | None


@dataclass(slots=True)
class LedgerRows:
    """Everything a batch writes about goods, in the words of `ids`; `sums` is there when all frames are."""

    ids: Dictionary
    movements: list[Iterable[MovementRow]] = field(default_factory=list)  # of each frame, to be copied once
    moves: Moves = field(default_factory=Moves)
    sums: Sums = field(default_factory=lambda: Sums(Moves()))
    hours: Hours = field(default_factory=lambda: Sums(Moves()).hours)  # of shelves: nobody counts the world outside
    readings: list[tuple[Any, ...]] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)
    adjust: set[int] = field(default_factory=set)  # the `@adjust` of the batch's sites
    bounded: dict[LogKey, list[ClampedTime]] = field(default_factory=dict)
    late_counts: dict[str, int] = field(default_factory=dict)
    _logs: list[tuple[int, LogKey]] = field(default_factory=list)  # with the place of their frame's first movement

    def adjust_cell(self, cell: CellKey) -> CellKey:
        """The cell that what a count adds to this one is taken from."""
        return cell._replace(location_id=self.ids.adjust_of(cell.location_id))

    @property
    def movement_count(self) -> int:
        """How many movements there are."""
        return len(self.moves.items)

    def add_movements(self, log: LogKey, columns: MovementColumns, rows: Iterable[MovementRow]) -> None:
        """Note the movements of a frame, whose ids are in `moves` already."""
        self._logs.append((self.movement_count - len(columns), log))
        self.movements.append(rows)

    def steps(self, place: int) -> Iterator[Step]:
        """The movements in the cell at a place of `sums.cells`."""
        for row, hlc, seq, moved in self.sums.halves(place):
            _, log = self._logs[bisect_right(self._logs, row, key=lambda pair: pair[0]) - 1]
            yield Step(hlc, log.gateway, log.epoch, seq, moved, None)


def postgres_time(ms: int) -> int:
    """A Unix time in milliseconds as binary COPY wants it."""
    return (ms - POSTGRES_EPOCH_MS) * 1000


def build(merged: Iterable[PlannedFrame], ids: Dictionary) -> LedgerRows:
    """Make the rows of all frames of a batch."""
    rows = LedgerRows(ids)
    for planned in merged:
        _FrameRows(planned, ids, rows).build()
    counted = {CellKey(count["location_id"], count["item_id"], count["lot_id"]) for count in rows.counts}
    rows.sums = Sums(rows.moves, counted)
    hours = rows.sums.hours
    rows.hours = hours.where(~ids.are_virtual(hours.locations))
    return rows


class _FrameRows:
    """Adds the rows of one frame."""

    def __init__(self, planned: PlannedFrame, ids: Dictionary, rows: LedgerRows) -> None:
        header, gateway = planned.arrived.frame.header, planned.gateway
        self.planned, self.gateway, self.ids, self.rows = planned, gateway, ids, rows
        self.boots, self.received_ms = header.boots, planned.arrived.received_ms
        # Nearly all times are: then nothing more is asked about them.
        self.believed_ms = self.received_ms - times.AGE_MS_MAX, self.received_ms + times.AHEAD_MS_MAX
        self.log, self.epoch = planned.arrived.log, header.epoch
        self.epoch_id = ids.epochs[gateway.gateway_id][header.epoch]
        self.locations, self.items = ids.locations[gateway.site_id], ids.items[gateway.tenant_id]
        self.devices = ids.devices[gateway.gateway_id]

    def build(self) -> None:
        self.rows.adjust.add(self.locations[names.ADJUST])
        if len(self.planned.movements):
            self._movements(self.planned.movements)
        for seq, entry in self.planned.others:
            if isinstance(entry, Count):
                self._count(seq, entry)
            else:
                self._reading(seq, entry)

    def _movements(self, columns: MovementColumns) -> None:
        gateway, moves = self.gateway, self.rows.moves
        at_ms, claimed_ms = self._true_times(columns)
        items = [*map(self.items.__getitem__, columns.skus)]
        lots = self._lots(items, columns)
        sources = [*map(self.locations.__getitem__, columns.sources)]
        destinations = [*map(self.locations.__getitem__, columns.destinations)]
        moves.items += items
        moves.lots += lots
        moves.sources += sources
        moves.destinations += destinations
        moves.quantities.append(columns.quantities)
        moves.hlcs.append(columns.hlcs)
        moves.seqs.append(columns.seqs)
        moves.at_hours.append(at_ms // HOUR_MS)
        moves.known_hours.append(np.full(len(columns), self.received_ms // HOUR_MS, dtype=np.int64))
        rows = zip(
            ((at_ms - POSTGRES_EPOCH_MS) * 1000).tolist(),
            columns.hlcs.tolist(),
            columns.seqs.tolist(),
            columns.quantities.tolist(),
            _each(columns.device_at_ms, postgres_time),
            claimed_ms,
            repeat(gateway.tenant_id),
            repeat(gateway.gateway_id),
            repeat(self.epoch_id),
            items,
            lots,
            sources,
            destinations,
            _each(columns.devices, self.devices.__getitem__),
            map(MOVEMENT_KINDS.__getitem__, columns.kinds),
            columns.serials or repeat(None),
            columns.events or repeat(None),
            columns.actors or repeat(None),
            columns.references or repeat(None),
            strict=False,  # what repeats has no end
        )
        self.rows.add_movements(self.log, columns, rows)

    def _lots(self, items: Sequence[int], columns: MovementColumns) -> list[int]:
        if columns.lots is None:
            return [NO_LOT] * len(items)
        of_item = self.ids.lots
        return [NO_LOT if lot is None else of_item[item][lot] for item, lot in zip(items, columns.lots, strict=True)]

    def _true_times(self, columns: MovementColumns) -> tuple[Numbers, Iterable[int | None]]:
        """When the movements happened, and what their frame claims where that is not believed; Unix milliseconds."""
        claimed = columns.claimed_ms
        doubtful = np.flatnonzero((claimed < self.believed_ms[0]) | (claimed > self.believed_ms[1])).tolist()
        if not doubtful:
            return claimed, repeat(None)
        at_ms = claimed.copy()
        kept: list[int | None] = [None] * len(columns)
        for place in doubtful:
            at_ms[place], kept[place] = self._bounded(int(columns.seqs[place]), int(claimed[place]))
        return at_ms, kept

    def _count(self, seq: int, entry: Count) -> None:
        gateway = self.gateway
        at_ms, claimed_ms = self._true_time(seq, entry)
        item_id = self.items[entry.sku]
        lot_id = NO_LOT if entry.lot is None else self.ids.lots[item_id][entry.lot]
        location_id = self.locations[entry.location]
        self.rows.counts.append(
            {
                "at": _datetime(at_ms),
                "hlc": entry.hlc,
                "seq": seq,
                "quantity": entry.quantity,
                "variance": None,
                "device_at": None if entry.device_at_ms is None else _datetime(entry.device_at_ms),
                "claimed_ms": claimed_ms,
                "tenant_id": gateway.tenant_id,
                "gateway_id": gateway.gateway_id,
                "epoch_id": self.epoch_id,
                "item_id": item_id,
                "lot_id": lot_id,
                "location_id": location_id,
                "device_id": self._device(entry.device),
                "gateway_name": gateway.name,
                "epoch": self.epoch,
                "serial": entry.serial,
                "event": entry.event,
                "actor": entry.actor,
                "reference": entry.reference,
            }
        )

    def _reading(self, seq: int, entry: Reading) -> None:
        gateway = self.gateway
        at_ms, claimed_ms = self._true_time(seq, entry)
        device_at = None if entry.device_at_ms is None else postgres_time(entry.device_at_ms)
        for name, value in entry.values.items():
            self.rows.readings.append(
                (
                    postgres_time(at_ms),
                    entry.hlc,
                    seq,
                    value,
                    device_at,
                    claimed_ms,
                    gateway.tenant_id,
                    gateway.gateway_id,
                    self.epoch_id,
                    self._device(entry.device),
                    self.ids.metrics[gateway.tenant_id][name],
                )
            )

    def _true_time(self, seq: int, entry: Count | Reading) -> tuple[int, int | None]:
        claimed = times.claimed_ms(entry, self.boots)
        if self.believed_ms[0] <= claimed <= self.believed_ms[1]:
            return claimed, None
        return self._bounded(seq, claimed)

    def _bounded(self, seq: int, claimed: int) -> times.TrueTime:
        found = times.bounded(claimed, self.received_ms)
        reported = self.rows.bounded.setdefault(self.log, [])
        if len(reported) < CLAMPED_REPORTED_MAX:
            reported.append(ClampedTime(seq=seq, at_ms=found.at_ms))
        return found

    def _device(self, name: str | None) -> int | None:
        return None if name is None else self.devices[name]


def _each(column: Sequence[Any] | None, get: Callable[[Any], int]) -> Iterable[int | None]:
    """`get` of every value; None where there is none."""
    if column is None:
        return repeat(None)
    return [None if value is None else get(value) for value in column]


def _datetime(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)

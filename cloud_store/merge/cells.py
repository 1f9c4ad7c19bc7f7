"""What a batch's movements do to cells: added up at once, as arrays.

A movement has two halves, one in the cell that it takes from and one in the cell that it gives to. Sorted by cell, and
by hour within a cell, the halves of each cell and of each of its hours lie side by side.

Invariant: no database here, only arithmetic. The halves of a movement cancel out, so the sum over all cells of a batch
is zero before anything is written.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloud_store.base.ledger_numbers import HOUR_OF_HLC, NEVER, CellKey
from cloud_store.merge.frame_entries import Numbers
from wire_protocol import clock

PENDING_HOURS_MAX: Final = 500_000  # 40 bytes each
_FAR: Final = clock.HLC_MAX
_KEY_BITS: Final = 63


class Half(NamedTuple):
    """What a movement does to one of its cells; `row` is its place in the batch."""

    row: int
    hlc: int
    seq: int
    moved: int


@dataclass(slots=True)
class Moves:
    """The movements of a batch, frame after frame: ids, quantities and clocks, without what no cell needs."""

    sources: list[int] = field(default_factory=list)
    destinations: list[int] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    lots: list[int] = field(default_factory=list)
    quantities: list[Numbers] = field(default_factory=list)
    hlcs: list[Numbers] = field(default_factory=list)
    seqs: list[Numbers] = field(default_factory=list)


class Cells(NamedTuple):
    """Cells in key order, with what moves in each; arrays of shape (cells,).

    The clocks of a cell without movements are before and after all others.
    """

    locations: Numbers
    items: Numbers
    lots: Numbers
    moved: Numbers
    first_hlc: Numbers
    last_hlc: Numbers

    def where(self, keep: NDArray[np.bool_] | Numbers) -> "Cells":
        """Only the cells for which `keep` is true, or at the places that it has."""
        return Cells(*(column[keep] for column in self))

    def keys(self) -> Iterator[tuple[int, int, int]]:
        """The cells, in order: each equal to its `CellKey`, which would take ten times as long to make."""
        return zip(self.locations.tolist(), self.items.tolist(), self.lots.tolist(), strict=True)


class Hours(NamedTuple):
    """Hours of cells in key order, with what was moved in each; arrays of shape (hours,).

    An hour is of the hybrid logical clock: the clock reading divided by `HOUR_OF_HLC`.
    """

    locations: Numbers
    items: Numbers
    lots: Numbers
    hours: Numbers
    moved: Numbers

    def where(self, keep: NDArray[np.bool_] | slice) -> "Hours":
        """Only the hours for which `keep` is true, or of a slice."""
        return Hours(*(column[keep] for column in self))

    def parted(self, cells: Collection[CellKey]) -> tuple["Hours", "Hours"]:
        """The hours of some cells, and the rest."""
        # There may be a thousand times as many hours as are asked for: the locations leave few to be looked at.
        concerned = np.isin(self.locations, [cell.location_id for cell in cells])
        near = self.where(concerned)
        keys = zip(near.locations.tolist(), near.items.tolist(), near.lots.tolist(), strict=True)
        concerned[concerned] = [key in cells for key in keys]
        return self.where(concerned), self.where(~concerned)


class PendingHours:
    """Hours that are not in the database yet, of many batches: there they cost as much for one movement as for many.

    They may be lost with the process: the hours of a cell that do not add up to what was moved in it are made again
    when a late count needs them (`late_counts`). Thread-safe, and bounded: beyond the bound they are forgotten.
    """

    def __init__(self) -> None:
        self._parts: list[Hours] = []
        self._rows = 0
        self._lock = Lock()

    def __len__(self) -> int:
        """How many rows they are at most; the same hour may be in several."""
        return self._rows

    def add(self, hours: Hours) -> None:
        """Note what a batch has moved, after its commit."""
        with self._lock:
            self._parts.append(hours)
            self._rows += len(hours.hours)
            if self._rows > PENDING_HOURS_MAX:
                self._keep(_added_up(self._parts))
            if self._rows > PENDING_HOURS_MAX:
                self._parts, self._rows = [], 0

    def take(self) -> Hours:
        """Take all."""
        with self._lock:
            taken, self._parts, self._rows = _added_up(self._parts), [], 0
        return taken

    def take_of(self, cells: Collection[CellKey]) -> Hours:
        """Take those of some cells."""
        with self._lock:
            parted = [part.parted(cells) for part in self._parts]
            self._parts = [left for _, left in parted]
            self._rows = sum(len(left.hours) for left in self._parts)
        return _added_up([taken for taken, _ in parted])

    def _keep(self, hours: Hours) -> None:
        self._parts, self._rows = [hours], len(hours.hours)


def _added_up(parts: Sequence[Hours]) -> Hours:
    joined = [_joined(column) for column in zip(*parts, strict=True)] if parts else [_joined(())] * len(Hours._fields)
    order = _sorted(joined[:-1])
    *keys, moved = (column[order] for column in joined)
    starts = np.flatnonzero(_changes(*keys))
    locations, items, lots, hours = (column[starts] for column in keys)
    return Hours(locations, items, lots, hours, _add_up(moved, starts))


class Sums:
    """The movements of a batch by cell and by hour.

    Args:
        moves: the movements.
        counted: cells that must be among the cells even when nothing moves in them.
    """

    def __init__(self, moves: Moves, counted: Collection[CellKey] = ()) -> None:
        quantities, hlcs, self._seqs = _joined(moves.quantities), _joined(moves.hlcs), _joined(moves.seqs)
        ids = [_halves(moves.sources, moves.destinations), _halves(moves.items), _halves(moves.lots)]
        self._moved = np.concatenate((-quantities, quantities))
        first_hlc = last_hlc = self._hlcs = np.concatenate((hlcs, hlcs))
        self._rows = len(quantities)
        if counted:
            none = np.zeros(len(counted), dtype=np.int64)
            ids = [np.append(column, some) for column, some in zip(ids, zip(*counted, strict=True), strict=True)]
            self._moved = np.append(self._moved, none)
            first_hlc, last_hlc = np.append(first_hlc, none + _FAR), np.append(last_hlc, none + NEVER)
            self._hlcs = last_hlc
        hours = np.maximum(self._hlcs, 0) // HOUR_OF_HLC
        self._order = _sorted([*ids, hours])
        locations, items, lots, hours, moved = (column[self._order] for column in (*ids, hours, self._moved))
        begins = _changes(locations, items, lots)
        self._starts = np.flatnonzero(begins)
        of_hour = np.flatnonzero(begins | _changes(hours))
        at = self._starts
        self.cells = Cells(
            locations[at],
            items[at],
            lots[at],
            _add_up(moved, at),
            np.minimum.reduceat(first_hlc[self._order], at) if len(at) else at,
            np.maximum.reduceat(last_hlc[self._order], at) if len(at) else at,
        )
        self.hours = Hours(locations[of_hour], items[of_hour], lots[of_hour], hours[of_hour], _add_up(moved, of_hour))

    def halves(self, place: int) -> Iterator[Half]:
        """What the movements do to the cell at a place of `cells`."""
        end = self._starts[place + 1] if place + 1 < len(self._starts) else len(self._order)
        for half in self._order[self._starts[place] : end].tolist():
            if half < 2 * self._rows:
                row = half % self._rows
                yield Half(row, int(self._hlcs[half]), int(self._seqs[row]), int(self._moved[half]))


def _joined(parts: Sequence[Numbers]) -> Numbers:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _halves(taken_from: Sequence[int], given_to: Sequence[int] | None = None) -> Numbers:
    return np.array([*taken_from, *(taken_from if given_to is None else given_to)], dtype=np.int64)


def _sorted(columns: Sequence[Numbers]) -> Numbers:
    """The order of rows by several columns, the first of which counts most; none of them has a negative number."""
    key, bits = np.zeros(len(columns[0]), dtype=np.int64), 0
    for column in reversed(columns):
        low = int(column.min(initial=_FAR))
        key += column - low << bits
        bits += int(column.max(initial=0) - low).bit_length() if len(column) else 0
        if bits > _KEY_BITS:
            return np.lexsort(tuple(reversed(columns)))
    return np.argsort(key, kind="stable")


def _changes(*columns: Numbers) -> NDArray[np.bool_]:
    """Where a row differs from the one before, and at the first."""
    changed = np.zeros(len(columns[0]), dtype=np.bool_)
    changed[:1] = True
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return changed


def _add_up(moved: Numbers, starts: Numbers) -> Numbers:
    return np.add.reduceat(moved, starts) if len(starts) else starts

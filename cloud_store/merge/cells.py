"""What a batch's movements do to cells: added up at once, as arrays.

A movement has two halves, one in the cell that it takes from and one in the cell that it gives to. Sorted by cell, and
by hour within a cell, the halves of each cell and of each of its hours lie side by side.

Invariant: no database here, only arithmetic. The halves of a movement cancel out, so the sum over all cells of a batch
is zero before anything is written.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloud_store.base.ledger_numbers import HOUR_OF_HLC, NEVER, CellKey
from cloud_store.merge.frame_entries import Numbers
from wire_protocol import clock

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
    at_hours: list[Numbers] = field(default_factory=list)
    known_hours: list[Numbers] = field(default_factory=list)


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

    The hours are those of the ledger order, of when it happened and of when the cloud learned of it; Unix hours.
    """

    locations: Numbers
    items: Numbers
    lots: Numbers
    hours: Numbers
    at_hours: Numbers
    known_hours: Numbers
    moved: Numbers

    def where(self, keep: NDArray[np.bool_]) -> "Hours":
        """Only the hours for which `keep` is true."""
        return Hours(*(column[keep] for column in self))


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
        clocks = self._clocks(hlcs, moves, len(counted))
        self._order = _sorted([*ids, *clocks])
        locations, items, lots, hours, at, known, moved = (c[self._order] for c in (*ids, *clocks, self._moved))
        begins = _changes(locations, items, lots)
        self._starts = np.flatnonzero(begins)
        of_hour = np.flatnonzero(begins | _changes(hours, at, known))
        of_cell = self._starts
        self.cells = Cells(
            locations[of_cell],
            items[of_cell],
            lots[of_cell],
            _add_up(moved, of_cell),
            np.minimum.reduceat(first_hlc[self._order], of_cell) if len(of_cell) else of_cell,
            np.maximum.reduceat(last_hlc[self._order], of_cell) if len(of_cell) else of_cell,
        )
        locations, items, lots, hours, at, known = (c[of_hour] for c in (locations, items, lots, hours, at, known))
        all_hours = Hours(locations, items, lots, hours, hours + at, hours + known, _add_up(moved, of_hour))
        # An hour in which what came has gone again is one of them; one in which there was a count alone is none.
        self.hours = all_hours.where(_add_up(self._order < 2 * self._rows, of_hour) > 0) if counted else all_hours

    @staticmethod
    def _clocks(hlcs: Numbers, moves: Moves, counted: int) -> list[Numbers]:
        """The hour of each half, and how far its other two hours are from that: mostly 0, so sorting needs few bits."""
        hours = np.maximum(hlcs, 0) // HOUR_OF_HLC
        others = (_joined(of_frames) - hours for of_frames in (moves.at_hours, moves.known_hours))
        idle = np.full(counted, hours.min(initial=_FAR) if len(hours) else 0, dtype=np.int64)
        return [
            np.concatenate((each, each, rest))
            for each, rest in zip((hours, *others), (idle, idle * 0, idle * 0), strict=True)
        ]

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


def _add_up(moved: Numbers | NDArray[np.bool_], starts: Numbers) -> Numbers:
    return np.add.reduceat(moved, starts, dtype=np.int64) if len(starts) else starts

"""Booking a batch into balances and counts: the SQL form of `wire_protocol.stock`.

Three ways, from the common to the rare:

1. A cell without counts, or with all its new movements later than its latest count: add.
2. New counts in a cell, all new entries later than what it had: replay the new entries in order, beside the database.
3. Anything earlier than a count, or a count earlier than something: SQL looks at exactly the history concerned.

Whatever a count adds to a cell is taken from `@adjust` of its site. Cells are locked in key order, shelves before
`@adjust`, so two workers cannot deadlock here.

Invariant: everything runs in the caller's transaction, after the batch's movements and hours were copied into it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import chain, starmap
from typing import Any, Final, NamedTuple

import numpy as np

from cloud_store.base import sql
from cloud_store.base.arrays import Integers
from cloud_store.base.connection import Connection
from cloud_store.base.errors import Unstorable
from cloud_store.base.ledger_numbers import NEVER, CellKey
from cloud_store.merge import late_counts as lateness
from cloud_store.merge.cells import Cells
from cloud_store.merge.frame_entries import Numbers
from cloud_store.merge.ledger_rows import LedgerRows, Step
from wire_protocol import clock, stock

_SQL: Final = sql.load("balances")
LATELY: Final = clock.pack(10 * 60 * 1000)  # of the hybrid logical clock: what honest gateways' entries differ by


class OutOfDomain(Unstorable):
    """The stock of some cells would be beyond what stock may be."""

    def __init__(self, cells: Collection[CellKey]) -> None:
        super().__init__(f"{len(cells)} cells would be beyond {stock.BALANCE_MAX}.")
        self.cells = frozenset(cells)


class BookedCell(NamedTuple):
    """A cell after its movements were added, that a count may concern. The clocks are from before, if it is counted.

    `place` is the cell's place in the batch's cells.
    """

    place: int
    on_hand: int
    counted_hlc: int
    last_hlc: int


def book(connection: Connection, rows: LedgerRows) -> tuple[Cells, Mapping[CellKey, int]]:
    """Book a batch. Returns what has moved in cells, and by how much counts have changed cells beside that."""
    cells = rows.sums.cells
    at_adjust = np.isin(cells.locations, list(rows.adjust))
    counted: dict[CellKey, int] = {}
    if not at_adjust.all():
        booked = _book_shelves(connection, rows, np.flatnonzero(~at_adjust))
        counted = dict(_settle(connection, rows, booked)) if booked else {}
        taken: defaultdict[CellKey, int] = defaultdict(int)
        for cell, quantity in counted.items():
            taken[rows.adjust_cell(cell)] -= quantity
        _book_adjust(connection, cells.where(at_adjust), taken)
        counted |= taken
    return cells, counted


def _book_shelves(connection: Connection, rows: LedgerRows, places: Numbers) -> dict[CellKey, BookedCell]:
    counted = {CellKey(count["location_id"], count["item_id"], count["lot_id"]) for count in rows.counts}
    cells = rows.sums.cells.where(places)
    # A counted cell keeps its old clocks for now: they decide between replay and looking back.
    last_hlc = cells.last_hlc
    if counted:
        last_hlc = np.where([*map(counted.__contains__, cells.keys())], NEVER, last_hlc)
    # A count that was booked before may concern movements that are as early as it. Most movements of a batch are of the
    # same minutes: a cell that was counted before all of those needs no look, unless it is one of the few with others.
    recent = cells.first_hlc >= _usual_hlc(cells) - LATELY
    parameters = {
        **_columns(cells),
        "on_hand": cells.moved,
        "moved": cells.moved,
        "last_hlc": last_hlc,
        "balance_max": stock.BALANCE_MAX,
        "recent_hlc": int(cells.first_hlc[recent].min()),
        **{f"late_{name}": column for name, column in _columns(cells.where(~recent)).items()},
        **{f"counted_{name}": column for name, column in key_columns(counted).items()},
    }
    place_of = _Places(cells, places)
    return {cell: BookedCell(place_of(cell), *state) for cell, state in _booked(connection, parameters)}


def _usual_hlc(cells: Cells) -> int:
    """The clock in the middle: one gateway whose clock is wrong does not make all others' movements early ones."""
    moving = cells.first_hlc[cells.last_hlc != NEVER]
    middle = len(moving) // 2
    return int(np.partition(moving, middle)[middle]) if len(moving) else 0


class _Places:
    """Finds cells by key among sorted ones."""

    def __init__(self, cells: Cells, places: Numbers) -> None:
        self._cells, self._places = cells, places

    def __call__(self, cell: CellKey) -> int:
        first, end = 0, len(self._places)
        for column, wanted in zip(self._cells[:3], cell, strict=True):
            part = column[first:end]
            first, end = (
                first + int(np.searchsorted(part, wanted)),
                first + int(np.searchsorted(part, wanted, side="right")),
            )
        return int(self._places[first])


def _booked(connection: Connection, parameters: Mapping[str, Any]) -> list[tuple[CellKey, tuple[int, int, int]]]:
    """Add to cells; returns those that a count may concern, with on hand and the clocks of counts and movements.

    Raises:
        OutOfDomain: some would be beyond what stock may be.
    """
    booked, beyond = [], []
    for location, item, lot, on_hand, moved, counted_hlc, last_hlc in connection.execute(_SQL["book"], parameters):
        cell = CellKey(location, item, lot)
        booked.append((cell, (on_hand, NEVER if counted_hlc is None else counted_hlc, last_hlc)))
        if not (stock.in_domain(on_hand) and stock.in_domain(moved)):
            beyond.append(cell)
    if beyond:
        raise OutOfDomain(beyond)
    return booked


def _settle(connection: Connection, rows: LedgerRows, booked: Mapping[CellKey, BookedCell]) -> Mapping[CellKey, int]:
    """Let counts take effect. Returns how much on hand they added, by cell."""
    added: defaultdict[CellKey, int] = defaultdict(int)
    counts, cells = _counts_by_cell(rows), rows.sums.cells
    # Not counted now, and nothing as early as the latest count: `book` was all there was to do.
    touched = {
        cell for cell, state in booked.items() if cell in counts or cells.first_hlc[state.place] <= state.counted_hlc
    }
    if touched:
        steps = {cell: _steps(rows, counts.get(cell, ()), booked[cell]) for cell in touched}
        fresh = {cell for cell in counts if _is_later(steps[cell], booked[cell])}
        _replay(connection, {cell: (booked[cell], sorted(steps[cell])) for cell in fresh}, added)
        late = sorted(touched - fresh)
        _cover_late(connection, [(cell, booked[cell], steps[cell]) for cell in late], added)
        late_counts = {cell: counts[cell] for cell in late if cell in counts}
        for count in chain.from_iterable(late_counts.values()):
            gateway = count["gateway_name"]
            rows.late_counts[gateway] = rows.late_counts.get(gateway, 0) + 1
        for cell, quantity in lateness.insert(connection, late_counts).items():
            added[cell] += quantity
        _raise_last(connection, {cell: int(cells.last_hlc[booked[cell].place]) for cell in late_counts})
    return added


def _counts_by_cell(rows: LedgerRows) -> dict[CellKey, list[dict[str, Any]]]:
    counts: defaultdict[CellKey, list[dict[str, Any]]] = defaultdict(list)
    for count in rows.counts:
        counts[CellKey(count["location_id"], count["item_id"], count["lot_id"])].append(count)
    return dict(counts)


def _is_later(steps: list[Step], state: BookedCell) -> bool:
    """Whether all these entries are certainly later than everything the cell had."""
    return min(step.hlc for step in steps) > max(state.counted_hlc, state.last_hlc)


def _steps(rows: LedgerRows, counts: Iterable[dict[str, Any]], state: BookedCell) -> list[Step]:
    """The batch's counts of a cell, and its movements in it."""
    return [
        *(Step(count["hlc"], count["gateway_name"], count["epoch"], count["seq"], 0, count) for count in counts),
        *rows.steps(state.place),
    ]


def _replay(
    connection: Connection,
    fresh: Mapping[CellKey, tuple[BookedCell, list[Step]]],
    added: defaultdict[CellKey, int],
) -> None:
    """Way 2: the new entries of each cell in order, on top of what it had."""
    settled: list[tuple[CellKey, int, int, int]] = []
    counts: list[dict[str, Any]] = []
    for cell, (state, steps) in fresh.items():
        moved = sum(step.moved for step in steps)
        on_hand, counted_hlc = state.on_hand - moved, NEVER
        for step in steps:
            if step.found is None:
                on_hand += step.moved
                continue
            variance = step.found["quantity"] - on_hand
            on_hand, counted_hlc = step.found["quantity"], step.hlc
            added[cell] += variance
            counts.append({**step.found, "variance": variance})
        last_hlc = max((step.hlc for step in steps if step.found is None), default=NEVER)
        settled.append((cell, on_hand, counted_hlc, max(state.last_hlc, last_hlc)))
    if not settled:
        return
    lateness.store(connection, counts)
    connection.execute(
        _SQL["settle"],
        {
            **key_columns(cell for cell, *_ in settled),
            "on_hand": Integers(on_hand for _, on_hand, _, _ in settled),
            "counted_hlc": Integers(hlc for _, _, hlc, _ in settled),
            "last_hlc": Integers(hlc for *_, hlc in settled),
        },
    )


def _cover_late(
    connection: Connection, cells: Iterable[tuple[CellKey, BookedCell, list[Step]]], added: defaultdict[CellKey, int]
) -> None:
    """Way 3, movements: what is as early as the latest count goes to SQL, which decides in the exact order."""
    late = [
        (cell, step)
        for cell, state, steps in cells
        for step in steps
        if step.found is None and step.hlc <= state.counted_hlc
    ]
    if not late:
        return
    parameters = {
        **key_columns(cell for cell, _ in late),
        "hlcs": Integers(step.hlc for _, step in late),
        "gateways": [step.gateway for _, step in late],
        "epochs": [step.epoch for _, step in late],
        "seqs": Integers(step.seq for _, step in late),
        "quantities": Integers(step.moved for _, step in late),
    }
    for location, item, lot, taken_back in connection.execute(_SQL["cover_late"], parameters):
        added[CellKey(location, item, lot)] -= taken_back


def _raise_last(connection: Connection, last_hlcs: Mapping[CellKey, int]) -> None:
    """Give counted cells the clock of their latest movement, which `book` has held back."""
    if last_hlcs:
        connection.execute(_SQL["raise_last"], {**key_columns(last_hlcs), "last_hlcs": Integers(last_hlcs.values())})


def _book_adjust(connection: Connection, corrections: Cells, taken: Mapping[CellKey, int]) -> None:
    """Book corrections, which move goods, and variances, which do not, against `@adjust`."""
    of_cell = {cell: (moved, last) for cell, moved, last in _moved(corrections)}
    cells = sorted(of_cell.keys() | taken.keys())
    if not cells:
        return
    moved = [of_cell.get(cell, (0, NEVER))[0] for cell in cells]
    on_hand = [change + taken.get(cell, 0) for cell, change in zip(cells, moved, strict=True)]
    if beyond := [cell for cell, change in zip(cells, on_hand, strict=True) if not stock.in_domain(change)]:
        raise OutOfDomain(beyond)
    _booked(
        connection,
        {
            **key_columns(cells),
            "on_hand": Integers(on_hand),
            "moved": Integers(moved),
            "last_hlc": Integers(of_cell.get(cell, (0, NEVER))[1] for cell in cells),
            "balance_max": stock.BALANCE_MAX,
            "recent_hlc": clock.HLC_MAX,  # it is never counted
            **{f"{which}_{name}": column for which in ("late", "counted") for name, column in key_columns(()).items()},
        },
    )


def _moved(cells: Cells) -> Iterable[tuple[CellKey, int, int]]:
    return zip(starmap(CellKey, cells.keys()), cells.moved.tolist(), cells.last_hlc.tolist(), strict=True)


def _columns(cells: Cells) -> dict[str, Numbers]:
    return {"locations": cells.locations, "items": cells.items, "lots": cells.lots}


def key_columns(cells: Iterable[CellKey]) -> dict[str, Integers]:
    """Cells as statement parameters."""
    locations, items, lots = zip(*cells, strict=True) if (cells := list(cells)) else ((), (), ())
    return {"locations": Integers(locations), "items": Integers(items), "lots": Integers(lots)}

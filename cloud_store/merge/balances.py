"""Booking a batch into balances, their hours and counts: the SQL form of `wire_protocol.stock`.

Three ways, from the common to the rare:

1. A cell without counts, or with all its new movements later than its latest count: add.
2. New counts in a cell, all new entries later than what it had: replay the new entries in order, beside the database.
3. Anything earlier than a count, or a count earlier than something: SQL looks at exactly the history concerned.

Whatever a count adds to a cell is taken from `@adjust` of its site. Cells are locked in key order, shelves before
`@adjust`, so two workers cannot deadlock here.

Invariant: everything runs in the caller's transaction, after the batch's movements were copied into it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

from cloud_store.base import sql
from cloud_store.base.arrays import Integers
from cloud_store.base.connection import Connection
from cloud_store.base.errors import Unstorable
from cloud_store.merge import late_counts as lateness
from cloud_store.merge.ledger_rows import NEVER, CellChange, CellKey, LedgerRows, Step
from wire_protocol import stock

_SQL: Final = sql.load("balances")

# Positions in a movement row.
_HLC, _SEQ, _QUANTITY, _GATEWAY, _EPOCH, _ITEM, _LOT, _SOURCE, _DESTINATION = 1, 2, 3, 7, 8, 9, 10, 11, 12


class OutOfDomain(Unstorable):
    """The stock of some cells would be beyond what stock may be."""

    def __init__(self, cells: Collection[CellKey]) -> None:
        super().__init__(f"{len(cells)} cells would be beyond {stock.BALANCE_MAX}.")
        self.cells = frozenset(cells)


class BookedCell(NamedTuple):
    """A cell after its movements were added, that a count may concern. The clocks are from before, if it is counted."""

    on_hand: int
    counted_hlc: int
    last_hlc: int


def book(connection: Connection, rows: LedgerRows) -> Mapping[CellKey, int]:
    """Book a batch. Returns by how much on hand has changed, by cell."""
    changed = {cell: change.moved for cells in (rows.shelves, rows.adjust) for cell, change in cells.items()}
    if rows.shelves:
        booked = _book_shelves(connection, rows)
        _book_hours(connection, rows)
        added = _settle(connection, rows, booked) if booked else {}
        taken: defaultdict[CellKey, int] = defaultdict(int)
        for cell, quantity in added.items():
            taken[rows.adjust_cell(cell)] -= quantity
            changed[cell] += quantity
        for cell, quantity in taken.items():
            changed[cell] = changed.get(cell, 0) + quantity
        _book_adjust(connection, rows.adjust, taken)
    return changed


def _book_shelves(connection: Connection, rows: LedgerRows) -> dict[CellKey, BookedCell]:
    counted = {CellKey(count["location_id"], count["item_id"], count["lot_id"]) for count in rows.counts}
    keys = sorted(rows.shelves)
    changes = [rows.shelves[key] for key in keys]
    moved = [change.moved for change in changes]
    # A counted cell keeps its old clocks for now: they decide between replay and looking back.
    last = [NEVER if key in counted else change.last_hlc for key, change in zip(keys, changes, strict=True)]
    parameters = {
        **key_columns(keys),
        "on_hand": Integers(moved),
        "moved": Integers(moved),
        "last_hlc": Integers(last),
        "balance_max": stock.BALANCE_MAX,
        **{f"counted_{name}": column for name, column in key_columns(counted).items()},
    }
    return _booked(connection, parameters)


def _booked(connection: Connection, parameters: Mapping[str, Any]) -> dict[CellKey, BookedCell]:
    """Add to cells; returns those that a count may concern.

    Raises:
        OutOfDomain: some would be beyond what stock may be.
    """
    booked, beyond = {}, []
    for location, item, lot, on_hand, moved, counted_hlc, last_hlc in connection.execute(_SQL["book"], parameters):
        cell = CellKey(location, item, lot)
        booked[cell] = BookedCell(on_hand, NEVER if counted_hlc is None else counted_hlc, last_hlc)
        if not (stock.in_domain(on_hand) and stock.in_domain(moved)):
            beyond.append(cell)
    if beyond:
        raise OutOfDomain(beyond)
    return booked


def _settle(connection: Connection, rows: LedgerRows, booked: Mapping[CellKey, BookedCell]) -> Mapping[CellKey, int]:
    """Let counts take effect. Returns how much on hand they added, by cell."""
    added: defaultdict[CellKey, int] = defaultdict(int)
    counts = _counts_by_cell(rows)
    # Not counted now, and nothing as early as the latest count: `book` was all there was to do.
    touched = {
        cell for cell, state in booked.items() if cell in counts or rows.shelves[cell].first_hlc <= state.counted_hlc
    }
    if touched:
        steps = _steps(rows, counts, touched)
        fresh = {cell for cell in counts if _is_later(steps[cell], booked[cell])}
        _replay(connection, rows, {cell: (booked[cell], sorted(steps[cell])) for cell in fresh}, added)
        late = sorted(touched - fresh)
        _cover_late(connection, [(cell, booked[cell], steps[cell]) for cell in late], added)
        late_counts = {cell: counts[cell] for cell in late if cell in counts}
        for count in chain.from_iterable(late_counts.values()):
            gateway = count["gateway_name"]
            rows.late_counts[gateway] = rows.late_counts.get(gateway, 0) + 1
        for cell, quantity in lateness.insert(connection, late_counts).items():
            added[cell] += quantity
        _raise_last(connection, {cell: rows.shelves[cell].last_hlc for cell in late_counts})
    return added


def _counts_by_cell(rows: LedgerRows) -> dict[CellKey, list[dict[str, Any]]]:
    counts: defaultdict[CellKey, list[dict[str, Any]]] = defaultdict(list)
    for count in rows.counts:
        counts[CellKey(count["location_id"], count["item_id"], count["lot_id"])].append(count)
    return dict(counts)


def _is_later(steps: list[Step], state: BookedCell) -> bool:
    """Whether all these entries are certainly later than everything the cell had."""
    return min(step.hlc for step in steps) > max(state.counted_hlc, state.last_hlc)


def _steps(
    rows: LedgerRows, counts: Mapping[CellKey, list[dict[str, Any]]], cells: set[CellKey]
) -> Mapping[CellKey, list[Step]]:
    """The batch's counts, and its movements in these cells."""
    steps: defaultdict[CellKey, list[Step]] = defaultdict(list)
    for cell, cell_counts in counts.items():
        steps[cell] += [
            Step(count["hlc"], count["gateway_name"], count["epoch"], count["seq"], 0, count) for count in cell_counts
        ]
    for row in rows.movements:
        for location_id, sign in ((row[_SOURCE], -1), (row[_DESTINATION], 1)):
            cell = CellKey(location_id, row[_ITEM], row[_LOT])
            if cell in cells:
                log = rows.gateway_names[row[_GATEWAY]], rows.epoch_names[row[_EPOCH]]
                steps[cell].append(Step(row[_HLC], *log, row[_SEQ], sign * row[_QUANTITY], None))
    return steps


def _replay(
    connection: Connection,
    rows: LedgerRows,
    fresh: Mapping[CellKey, tuple[BookedCell, list[Step]]],
    added: defaultdict[CellKey, int],
) -> None:
    """Way 2: the new entries of each cell in order, on top of what it had."""
    settled: list[tuple[CellKey, int, int, int]] = []
    counts: list[dict[str, Any]] = []
    for cell, (state, steps) in fresh.items():
        on_hand, counted_hlc = state.on_hand - rows.shelves[cell].moved, NEVER
        for step in steps:
            if step.found is None:
                on_hand += step.moved
                continue
            variance = step.found["quantity"] - on_hand
            on_hand, counted_hlc = step.found["quantity"], step.hlc
            added[cell] += variance
            counts.append({**step.found, "variance": variance})
        settled.append((cell, on_hand, counted_hlc, max(state.last_hlc, rows.shelves[cell].last_hlc)))
    if not settled:
        return
    with connection.cursor() as cursor:
        cursor.executemany(_SQL["insert_count"], counts)
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


def _raise_last(connection: Connection, last_hlc: Mapping[CellKey, int]) -> None:
    """Give counted cells the clock of their latest movement, which `book` has held back."""
    if last_hlc:
        with connection.cursor() as cursor:
            cursor.executemany(
                _SQL["raise_last"], [{**cell._asdict(), "last_hlc": hlc} for cell, hlc in last_hlc.items()]
            )


def _book_adjust(
    connection: Connection, corrections: Mapping[CellKey, CellChange], taken: Mapping[CellKey, int]
) -> None:
    """Book corrections, which move goods, and variances, which do not, against `@adjust`."""
    cells = sorted(corrections.keys() | taken.keys())
    if not cells:
        return
    none = CellChange()
    moved = [corrections.get(cell, none).moved for cell in cells]
    on_hand = [change + taken.get(cell, 0) for cell, change in zip(cells, moved, strict=True)]
    if beyond := [cell for cell, change in zip(cells, on_hand, strict=True) if not stock.in_domain(change)]:
        raise OutOfDomain(beyond)
    _booked(
        connection,
        {
            **key_columns(cells),
            "on_hand": Integers(on_hand),
            "moved": Integers(moved),
            "last_hlc": Integers(corrections.get(cell, none).last_hlc for cell in cells),
            "balance_max": stock.BALANCE_MAX,
            **{f"counted_{name}": column for name, column in key_columns(()).items()},
        },
    )


def _book_hours(connection: Connection, rows: LedgerRows) -> None:
    keys = sorted(rows.hours)
    if keys:
        connection.execute(
            _SQL["book_hours"],
            {
                **key_columns(CellKey(*key[:3]) for key in keys),
                "hours": Integers(key[3] for key in keys),
                "moved": Integers(rows.hours[key] for key in keys),
            },
        )


def key_columns(cells: Iterable[CellKey]) -> dict[str, Integers]:
    locations, items, lots = zip(*cells, strict=True) if (cells := list(cells)) else ((), (), ())
    return {"locations": Integers(locations), "items": Integers(items), "lots": Integers(lots)}

"""Counts that come after later counts or movements of their cells: all of a batch at once, in four statements.

The variances between two counts add up to what the later one had, so a new count between them changes nothing else:

    variance(n) = n.quantity - c.quantity - (movements between c and n)      n: the next count after c
    variance(c) = what is left of n's variance before; without a next count, of the change of on hand

Movements between two points of a cell are added up directly, or as all that was ever moved minus those outside of the
points, whichever is less to read. So a stocktake that was made offline costs little, whether its time was at the
beginning of a year of movements or at its end.

Invariant: in the merge's transaction, after the batch's movements were booked and its late ones covered.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cloud_store.base import sql
from cloud_store.base.arrays import Integers
from cloud_store.base.connection import Connection
from cloud_store.merge.ledger_rows import NEVER, CellKey
from wire_protocol.stock import EntryKey

_SQL: Final = sql.load("late_counts")
_INSERT: Final = sql.load("balances")["insert_count"]
_BEGINNING: Final = EntryKey(NEVER, "", "", 0)
_END: Final = EntryKey((1 << 63) - 1, "", "", 0)


class _Next(NamedTuple):
    """The count that follows in a cell, as it is stored."""

    count_id: int
    key: EntryKey
    quantity: int
    variance: int


class _CellNow(NamedTuple):
    """A cell's balance, and the clock of its earliest movement."""

    on_hand: int
    moved: int
    first_hlc: int
    last_hlc: int


class _Range(NamedTuple):
    """Movements of a cell after one key and before another."""

    cell: CellKey
    after: EntryKey
    before: EntryKey


@dataclass(slots=True)
class _Run:
    """New counts of a cell, in order, with no stored count between them; `following` is the one after them."""

    cell: CellKey
    counts: list[dict[str, Any]]
    following: _Next | None

    def ranges(self) -> list[_Range]:
        """From each new count to the next, new or stored, or to the end."""
        keys = [_key(count) for count in self.counts]
        last = _END if self.following is None else self.following.key
        return [_Range(self.cell, *pair) for pair in zip(keys, [*keys[1:], last], strict=True)]


def insert(connection: Connection, counts: Mapping[CellKey, Sequence[dict[str, Any]]]) -> dict[CellKey, int]:
    """Insert late counts (rows of `ledger_rows`). Returns how much on hand they added, by cell."""
    ordered = [(cell, count) for cell, of_cell in counts.items() for count in sorted(of_cell, key=_key)]
    if not ordered:
        return {}
    following = _following(connection, ordered)
    cells = _cells_now(connection, counts)
    runs = _runs(ordered, following)
    since = _moved(connection, [each for run in runs for each in run.ranges()], cells)
    added: dict[CellKey, int] = {}
    rows: list[dict[str, Any]] = []
    variances: list[tuple[int, int]] = []
    for run in runs:
        steps = [next(since) for _ in run.counts]
        end = run.counts[-1]["quantity"] + steps[-1]  # on hand where the run ends
        if run.following is None:
            left = added[run.cell] = end - cells[run.cell].on_hand
        else:
            left = run.following.variance - (run.following.quantity - end)
            variances.append((run.following.count_id, run.following.quantity - end))
        later = [
            after["quantity"] - count["quantity"] - moved
            for count, after, moved in zip(run.counts, run.counts[1:], steps, strict=False)
        ]
        own = [left - sum(later), *later]
        rows += [count | {"variance": variance} for count, variance in zip(run.counts, own, strict=True)]
    _write(connection, rows, variances, added, runs)
    return added


def _key(count: Mapping[str, Any]) -> EntryKey:
    return EntryKey(count["hlc"], count["gateway_name"], count["epoch"], count["seq"])


def _following(connection: Connection, counts: Sequence[tuple[CellKey, dict[str, Any]]]) -> dict[int, _Next]:
    """The stored count after each new one, by the new one's place."""
    keys = [_key(count) for _, count in counts]
    parameters = {**_cell_columns(cell for cell, _ in counts), **_key_columns("", keys)}
    return {
        place: _Next(count_id, EntryKey(*key), quantity, variance)
        for place, count_id, quantity, variance, *key in connection.execute(_SQL["following"], parameters)
    }


def _cells_now(connection: Connection, cells: Iterable[CellKey]) -> dict[CellKey, _CellNow]:
    return {
        CellKey(*row[:3]): _CellNow(*row[3:]) for row in connection.execute(_SQL["cells"], _cell_columns(sorted(cells)))
    }


def _runs(counts: Sequence[tuple[CellKey, dict[str, Any]]], following: Mapping[int, _Next]) -> list[_Run]:
    runs: list[_Run] = []
    for place, (cell, count) in enumerate(counts):
        after = following.get(place)
        if runs and runs[-1].cell == cell and runs[-1].following == after:
            runs[-1].counts.append(count)
        else:
            runs.append(_Run(cell, [count], after))
    return runs


def _moved(connection: Connection, ranges: Sequence[_Range], cells: Mapping[CellKey, _CellNow]) -> Iterator[int]:
    """What was moved in each range, one after the other."""
    asked: list[_Range] = []
    sums: list[tuple[int, list[int]]] = []  # of each range: where it begins, and the places in `asked` to take away
    for each in ranges:
        now = cells[each.cell]
        inside = min(each.before.hlc, now.last_hlc) - max(each.after.hlc, now.first_hlc)
        if 2 * inside <= now.last_hlc - now.first_hlc:
            sums.append((len(asked), []))
            asked.append(each)
            continue
        outside = [_Range(each.cell, _BEGINNING, each.after)]
        if each.before is not _END:
            outside.append(_Range(each.cell, each.before, _END))
        sums.append((-1, list(range(len(asked), len(asked) + len(outside)))))
        asked += outside
    found: dict[int, int] = dict(connection.execute(_SQL["moved"], _range_columns(asked)).fetchall())
    for each, (direct, outside_places) in zip(ranges, sums, strict=True):
        yield found[direct] if direct >= 0 else cells[each.cell].moved - sum(found[place] for place in outside_places)


def _write(
    connection: Connection,
    rows: Sequence[dict[str, Any]],
    variances: Sequence[tuple[int, int]],
    added: Mapping[CellKey, int],
    runs: Iterable[_Run],
) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(_INSERT, rows)
    if variances:
        counts, values = zip(*variances, strict=True)
        connection.execute(_SQL["set_variances"], {"counts": Integers(counts), "variances": Integers(values)})
    if added:
        latest = {run.cell: run.counts[-1]["hlc"] for run in runs if run.following is None}
        columns = {"added": Integers(added.values()), "counted_hlcs": Integers(latest[cell] for cell in added)}
        connection.execute(_SQL["set_balances"], {**_cell_columns(added), **columns})


def _cell_columns(cells: Iterable[CellKey]) -> dict[str, Any]:
    locations, items, lots = zip(*cells, strict=True)
    return {"locations": Integers(locations), "items": Integers(items), "lots": Integers(lots)}


def _key_columns(prefix: str, keys: Sequence[EntryKey]) -> dict[str, Any]:
    return {
        f"{prefix}hlcs": Integers(key.hlc for key in keys),
        f"{prefix}gateways": [key.gateway for key in keys],
        f"{prefix}epochs": [key.epoch for key in keys],
        f"{prefix}seqs": Integers(key.seq for key in keys),
    }


def _range_columns(ranges: Sequence[_Range]) -> dict[str, Any]:
    return {
        **_cell_columns(each.cell for each in ranges),
        **_key_columns("after_", [each.after for each in ranges]),
        **_key_columns("before_", [each.before for each in ranges]),
    }

"""Counts that come after later counts or movements of their cells: all of a batch at once, in four statements.

The variances between two counts add up to what the later one had, so a new count between them changes nothing else:

    variance(n) = n.quantity - c.quantity - (movements between c and n)      n: the next count after c
    variance(c) = what is left of n's variance before; without a next count, of the change of on hand

Movements between two points of a cell are added up by its hours (`cell_history`), and one by one at the two ends only.
To the end of a cell it is all that was ever moved minus what came before, where that is less to read. So a stocktake
that was made offline costs little, whatever its time, and however much its shelves have moved.

Invariant: in the merge's transaction, after the batch's movements were booked and its late ones covered.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cloud_store.base import sql
from cloud_store.base.arrays import Integers
from cloud_store.base.connection import Connection
from cloud_store.base.ledger_numbers import HOUR_OF_HLC, NEVER, CellKey
from wire_protocol.stock import EntryKey

_SQL: Final = sql.load("late_counts")
_BEGINNING: Final = EntryKey(NEVER, "", "", 0)
_END: Final = EntryKey((1 << 63) - 1, "", "", 0)
_AFTER_ALL: Final = "~"  # after every gateway's name
HOUR_MAX: Final = (1 << 31) - 1


class _Next(NamedTuple):
    """The count that follows in a cell, as it is stored."""

    count_id: int
    key: EntryKey
    quantity: int
    variance: int


class _CellNow(NamedTuple):
    """A cell's balance, and its hours: their sum, the first and the last."""

    on_hand: int
    moved: int
    history_whole: bool
    moved_by_hours: int
    first_hour: int
    last_hour: int


class _Range(NamedTuple):
    """Movements of a cell after one key and before another."""

    cell: CellKey
    after: EntryKey
    before: EntryKey

    @property
    def hours(self) -> tuple[int, int]:
        """The hours in which it begins and ends; what lies between them is whole hours."""
        return _hour(self.after), _hour(self.before)

    def ends(self) -> list["_Range"]:
        """What of it is no whole hour."""
        begin, end = self.hours
        if begin == end:
            return [self]
        head = self._replace(before=EntryKey((begin + 1) * HOUR_OF_HLC, "", "", 0))
        tail = self._replace(after=EntryKey(end * HOUR_OF_HLC - 1, _AFTER_ALL, "", 0))
        return [part for part, bound in ((head, self.after), (tail, self.before)) if bound not in (_BEGINNING, _END)]


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


def store(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Store counts (rows of `ledger_rows`) whose variances are known."""
    if rows:
        connection.execute(_SQL["insert"], {name: [row[name] for row in rows] for name in rows[0]})


def fold_history(connection: Connection, rows_max: int) -> int:
    """Add hours that merges have written to those that were there; returns how many rows of `cell_history_new` it took.

    Several may do it at once: each takes rows that no other has taken.
    """
    (taken,) = connection.execute(_SQL["fold_history"], {"rows": rows_max}).fetchone() or (0,)
    return int(taken)


def own_history(connection: Connection) -> None:
    """Let nobody else fold history, or make some again, until the transaction ends."""
    connection.execute(_SQL["lock_history"])


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
    columns = _cell_columns(sorted(cells))
    now = _read_cells(connection, columns)
    # From before there was a history, or merged by a worker that writes none. Their balances are locked, so nobody else
    # adds to it now, and what folds it waits.
    if unfit := [c for c, state in now.items() if not state.history_whole or state.moved_by_hours != state.moved]:
        own_history(connection)
        for step in ("forget_history", "make_history", "set_whole"):
            connection.execute(_SQL[step], {**_cell_columns(unfit), "hour_of_hlc": HOUR_OF_HLC})
        now |= _read_cells(connection, _cell_columns(unfit))
    return now


def _read_cells(connection: Connection, columns: Mapping[str, Any]) -> dict[CellKey, _CellNow]:
    return {CellKey(*row[:3]): _CellNow(*row[3:]) for row in connection.execute(_SQL["cells"], columns)}


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
    # To the end of a cell, the part before may be the shorter one.
    before = [_is_shorter_before(each, cells[each.cell]) for each in ranges]
    asked = [
        each._replace(after=_BEGINNING, before=each.after) if is_before else each
        for each, is_before in zip(ranges, before, strict=True)
    ]
    ends = [(place, end) for place, each in enumerate(asked) for end in each.ends()]
    totals = [0] * len(asked)
    if ends:
        columns = _range_columns([end for _, end in ends])
        for place, moved in connection.execute(_SQL["moved"], columns):
            totals[ends[place][0]] += moved
    for place, moved in connection.execute(_SQL["hours"], _hour_columns(asked)):
        totals[place] += moved
    for each, is_before, total in zip(ranges, before, totals, strict=True):
        yield cells[each.cell].moved - total if is_before else total


def _is_shorter_before(each: _Range, now: _CellNow) -> bool:
    begin, _ = each.hours
    return each.before is _END and begin - now.first_hour < now.last_hour - begin


def _hour(key: EntryKey) -> int:
    return min(HOUR_MAX, key.hlc // HOUR_OF_HLC)


def _write(
    connection: Connection,
    rows: Sequence[dict[str, Any]],
    variances: Sequence[tuple[int, int]],
    added: Mapping[CellKey, int],
    runs: Iterable[_Run],
) -> None:
    store(connection, rows)
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


def _hour_columns(ranges: Sequence[_Range]) -> dict[str, Any]:
    begins, ends = zip(*(each.hours for each in ranges), strict=True)
    return {**_cell_columns(each.cell for each in ranges), "after": Integers(begins), "before": Integers(ends)}


def _range_columns(ranges: Sequence[_Range]) -> dict[str, Any]:
    return {
        **_cell_columns(each.cell for each in ranges),
        **_key_columns("after_", [each.after for each in ranges]),
        **_key_columns("before_", [each.before for each in ranges]),
    }

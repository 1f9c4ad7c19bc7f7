"""The cloud's database in memory: transactions that commit or vanish as a whole, and a replica that lags.

Balances are kept by the production algebra (`wire_protocol.stock.Balance`), as the SQL does it.

Invariant: what a transaction did can be undone exactly, last first; a stale replica is the primary with its last
commits undone, rows and cursors together.
"""

from bisect import insort
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple

from cloud_store.arrivals import LogKey
from cloud_store.plan import PlannedFrame
from wire_protocol.entries import Count, LedgerEntry, Movement
from wire_protocol.names import ADJUST
from wire_protocol.replication import NO_CURSOR, Cursor
from wire_protocol.stock import Balance, Cell, EntryKey, counted_cell, deltas

COMMITS_KEPT: Final = 200

Undo = Callable[[], None]


class DatabaseAway(Exception):
    """The database does not answer."""


class Shelf(NamedTuple):
    """A cell of one site."""

    site: int
    cell: Cell


class Store:
    """Everything the cloud has stored."""

    def __init__(self) -> None:
        self.away = False
        self.session = 0  # every outage and failover ends all sessions
        self.cursors: dict[LogKey, Cursor] = {}
        self.furthest: dict[LogKey, int] = {}
        self.entries: defaultdict[str, list[tuple[int, LedgerEntry]]] = defaultdict(list)
        self.readings: defaultdict[str, list[int]] = defaultdict(list)
        self.history: defaultdict[Shelf, list[tuple[EntryKey, LedgerEntry]]] = defaultdict(list)
        self.balances: dict[Shelf, Balance] = {}
        self.touched: set[Shelf] = set()
        self._undo: list[Undo] = []
        self._commits: deque[list[Undo]] = deque(maxlen=COMMITS_KEPT)

    def read_cursors(self) -> Mapping[LogKey, Cursor]:
        """Cursors as they are now, not locked.

        Raises:
            DatabaseAway: it does not answer.
        """
        if self.away:
            raise DatabaseAway
        return dict(self.cursors)

    @contextmanager
    def transaction(self, session: int) -> Iterator[None]:
        """One transaction of a session; rolled back by any exception.

        Raises:
            DatabaseAway: the session is gone.
        """
        if self.away or session != self.session:
            raise DatabaseAway
        self._undo, self.touched = [], set()
        try:
            yield
        except BaseException:
            self._unwind(self._undo)
            raise
        self._commits.append(self._undo)
        for key, cursor in self.cursors.items():
            self.furthest[key] = max(cursor.frame, self.furthest.get(key, 0))

    def fail_over(self, commits: int) -> int:
        """A replica without the last commits takes over; returns how many it lacked."""
        lacked = 0
        while self._commits and lacked < commits:
            self._unwind(self._commits.pop())
            lacked += 1
        self.session += 1
        return lacked

    def advance(self, key: LogKey, cursor: Cursor) -> None:
        """Move a cursor."""
        before = self.cursors.get(key)
        self.cursors[key] = cursor
        self._undo.append(lambda: self._restore_cursor(key, before))

    def add(self, planned: PlannedFrame, site: int) -> None:
        """Store the rows of a frame."""
        name, entries, readings = planned.gateway.name, self.entries[planned.gateway.name], self.readings
        length, read = len(entries), len(readings[name])
        self._undo.append(lambda: _shorten(entries, length))
        self._undo.append(lambda: _shorten(readings[name], read))
        for seq, entry in planned.entries:
            if isinstance(entry, Movement | Count):
                entries.append((seq, entry))
                self.book(site, EntryKey(entry.hlc, name, planned.arrived.frame.header.epoch, seq), entry)
            else:
                readings[name].append(seq)

    def book(self, site: int, key: EntryKey, entry: LedgerEntry) -> None:
        """Book an entry, early or late."""
        if isinstance(entry, Count):
            self._count(Shelf(site, counted_cell(entry)), key, entry)
            return
        for cell, quantity in deltas(entry):
            shelf = Shelf(site, cell)
            self._remember(shelf, key, entry)
            before = self.balances.get(shelf, Balance())
            self._settle(shelf, before, before.after_movement(key, quantity))

    def _count(self, shelf: Shelf, key: EntryKey, count: Count) -> None:
        before = self.balances.get(shelf, Balance())
        since = 0
        if before.looks_back(key):
            later = (entry for at, entry in self.history[shelf] if at > key)
            since = sum(_change(entry, shelf.cell) for entry in later)
        self._remember(shelf, key, count)
        self._settle(shelf, before, before.after_count(key, count.quantity, moved_since=since))

    def _settle(self, shelf: Shelf, before: Balance, after: Balance) -> None:
        """Write a balance; what counts have added is taken from `@adjust`."""
        self._write(shelf, after)
        added = (after.on_hand - after.moved) - (before.on_hand - before.moved)
        if added and shelf.cell.location != ADJUST:
            adjust = Shelf(shelf.site, Cell(ADJUST, shelf.cell.sku, shelf.cell.lot))
            booked = self.balances.get(adjust, Balance())
            self._write(adjust, booked._replace(on_hand=booked.on_hand - added))

    def _write(self, shelf: Shelf, balance: Balance) -> None:
        before = self.balances.get(shelf)
        self.balances[shelf] = balance
        self.touched.add(shelf)
        self._undo.append(lambda: self._restore_balance(shelf, before))

    def _remember(self, shelf: Shelf, key: EntryKey, entry: LedgerEntry) -> None:
        history, remembered = self.history[shelf], (key, entry)
        insort(history, remembered, key=lambda row: row[0])
        self._undo.append(lambda: history.remove(remembered))

    def _restore_cursor(self, key: LogKey, cursor: Cursor | None) -> None:
        self.cursors[key] = cursor or NO_CURSOR

    def _restore_balance(self, shelf: Shelf, balance: Balance | None) -> None:
        self.balances[shelf] = balance or Balance()

    @staticmethod
    def _unwind(undo: list[Undo]) -> None:
        while undo:
            undo.pop()()


def _change(entry: LedgerEntry, cell: Cell) -> int:
    """What an entry moves into a cell."""
    if isinstance(entry, Count):
        return 0
    return sum(quantity for moved, quantity in deltas(entry) if moved == cell)


def _shorten(rows: list[tuple[int, LedgerEntry]] | list[int], length: int) -> None:
    del rows[length:]

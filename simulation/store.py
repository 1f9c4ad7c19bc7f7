"""The cloud's database in memory: transactions that commit or vanish as a whole, and a replica that lags.

Balances are kept by the production algebra (`wire_protocol.stock.Balance`), as the SQL does it.

Invariant: what a transaction did can be undone exactly, last first; a stale replica is the primary with its last
commits undone, rows and cursors together.
"""

from bisect import insort
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from cloud_store.base.errors import DatabaseUnavailable
from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.plan import PlannedFrame
from simulation.disk import Happened, happened
from wire_protocol.entries import Count, LedgerEntry, Movement
from wire_protocol.names import ADJUST
from wire_protocol.replication import NO_CURSOR, Cursor
from wire_protocol.site_messages import SiteFrame
from wire_protocol.stock import Balance, Cell, EntryKey, counted_cell, deltas

COMMITS_KEPT: Final = 200

Undo = Callable[[], None]


class DatabaseAway(DatabaseUnavailable):
    """The database does not answer."""


class Shelf(NamedTuple):
    """A cell of one site."""

    site: int
    cell: Cell


class EntryPlace(NamedTuple):
    """Where an entry is."""

    log: LogKey
    seq: int


class Store:
    """Everything the cloud has stored. A log's rows are under its key."""

    def __init__(self) -> None:
        self.away = False
        self.session = 0  # every outage and failover ends all sessions
        self.cursors: dict[LogKey, Cursor] = {}
        self.furthest: dict[LogKey, int] = {}
        self.announced: dict[str, str] = {}
        self.after: dict[LogKey, dict[str, Any]] = {}
        self.entries: defaultdict[LogKey, list[tuple[int, LedgerEntry]]] = defaultdict(list)
        self.at_ms: defaultdict[LogKey, dict[int, int]] = defaultdict(dict)
        self.rejected: defaultdict[LogKey, set[int]] = defaultdict(set)
        self.frames: defaultdict[LogKey, list[SiteFrame]] = defaultdict(list)
        self.readings: defaultdict[LogKey, list[int]] = defaultdict(list)
        self.judged: dict[tuple[LogKey, str], tuple[int, ...]] = {}  # never undone: what gateways may have been told
        self.rejudged: set[LogKey] = set()
        self.places: dict[Happened, EntryPlace] = {}
        self.twice: list[tuple[Happened, EntryPlace, EntryPlace]] = []
        self.history: defaultdict[Shelf, list[tuple[EntryKey, LedgerEntry]]] = defaultdict(list)
        self.balances: dict[Shelf, Balance] = {}
        self.touched: set[Shelf] = set()
        self._undo: list[Undo] = []
        self._commits: deque[list[Undo]] = deque(maxlen=COMMITS_KEPT)

    def require(self) -> None:
        """Whoever reads, reads now, without a lock.

        Raises:
            DatabaseAway: it does not answer.
        """
        if self.away:
            raise DatabaseAway

    def read_cursors(self, gateways: Iterable[str]) -> Mapping[LogKey, Cursor]:
        """Every log of some gateways, not locked.

        Raises:
            DatabaseAway: it does not answer.
        """
        self.require()
        names = set(gateways)
        return {key: cursor for key, cursor in self.cursors.items() if key.gateway in names}

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
        self._set(self.cursors, key, cursor)

    def announce(self, gateway: str, epoch: str) -> None:
        """Note the epoch that a gateway has announced; a commit of its own, which no replica lacks."""
        self.announced[gateway] = epoch

    def add(self, planned: PlannedFrame, site: int, times: Mapping[int, int]) -> None:
        """Store the rows of a frame; `times` are the true times of its entries."""
        log, header = planned.arrived.log, planned.arrived.frame.header
        if header.stream == "readings":
            self._extend(self.readings[log], [seq for seq, _ in planned.entries])
            return
        rejected = tuple(sorted(bad.seq for bad in planned.rejected))
        passed = SiteFrame(
            gateway=log.gateway,
            received_ms=planned.arrived.received_ms,
            rejected=rejected,
            frame=planned.arrived.payload,
        )
        self._extend(self.frames[log], [passed])
        if self.judged.setdefault((log, planned.arrived.frame.digest), rejected) != rejected:
            self.rejudged.add(log)
            self.judged[log, planned.arrived.frame.digest] = rejected
        self._note_rejected(self.rejected[log], rejected)
        if header.after:
            self._set(self.after, log, {epoch: head.model_dump() for epoch, head in header.after.items()})
        for seq, entry in planned.entries:
            if isinstance(entry, Movement | Count):
                self._extend(self.entries[log], [(seq, entry)])
                self._set(self.at_ms[log], seq, times[seq])
                self._place(log, seq, entry)
                self.book(site, EntryKey(entry.hlc, log.gateway, log.epoch, seq), entry)

    def _place(self, log: LogKey, seq: int, entry: LedgerEntry) -> None:
        what = happened(log.gateway, {"device": entry.device, "event": entry.event, "reference": entry.reference})
        if (before := self.places.get(what)) is not None:
            self.twice.append((what, before, EntryPlace(log, seq)))
        self._set(self.places, what, EntryPlace(log, seq))

    def book(self, site: int, key: EntryKey, entry: LedgerEntry) -> None:
        """Book an entry, early or late."""
        if isinstance(entry, Count):
            self._count(Shelf(site, counted_cell(entry)), key, entry)
            return
        for cell, quantity in deltas(entry):
            image_store = Shelf(site, cell)
            self._remember(image_store, key, entry)
            before = self.balances.get(image_store, Balance())
            self._settle(image_store, before, before.after_movement(key, quantity))

    def _count(self, image_store: Shelf, key: EntryKey, count: Count) -> None:
        before = self.balances.get(image_store, Balance())
        since = 0
        if before.looks_back(key):
            later = (entry for at, entry in self.history[image_store] if at > key)
            since = sum(_change(entry, image_store.cell) for entry in later)
        self._remember(image_store, key, count)
        self._settle(image_store, before, before.after_count(key, count.quantity, moved_since=since))

    def _settle(self, image_store: Shelf, before: Balance, after: Balance) -> None:
        """Write a balance; what counts have added is taken from `@adjust`."""
        self._write(image_store, after)
        added = (after.on_hand - after.moved) - (before.on_hand - before.moved)
        if added and image_store.cell.location != ADJUST:
            adjust = Shelf(image_store.site, Cell(ADJUST, image_store.cell.sku, image_store.cell.lot))
            booked = self.balances.get(adjust, Balance())
            self._write(adjust, booked._replace(on_hand=booked.on_hand - added))

    def _write(self, image_store: Shelf, balance: Balance) -> None:
        self.touched.add(image_store)
        self._set(self.balances, image_store, balance)

    def _remember(self, image_store: Shelf, key: EntryKey, entry: LedgerEntry) -> None:
        history, remembered = self.history[image_store], (key, entry)
        insort(history, remembered, key=lambda row: row[0])
        self._undo.append(lambda: history.remove(remembered))

    def _set(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        """Write a row of a table."""
        before, there = table.get(key), key in table
        table[key] = value

        def undo() -> None:
            if there:
                table[key] = before
            else:
                del table[key]

        self._undo.append(undo)

    def _extend(self, rows: list[Any], more: list[Any]) -> None:
        length = len(rows)
        rows += more

        def undo() -> None:
            del rows[length:]

        self._undo.append(undo)

    def _note_rejected(self, rejected: set[int], more: Iterable[int]) -> None:
        new = set(more) - rejected
        rejected |= new
        self._undo.append(lambda: rejected.difference_update(new))

    @staticmethod
    def _unwind(undo: list[Undo]) -> None:
        while undo:
            undo.pop()()


def cursor_of(store: Store, key: LogKey) -> Cursor:
    """Where a log stands."""
    return store.cursors.get(key, NO_CURSOR)


def _change(entry: LedgerEntry, cell: Cell) -> int:
    """What an entry moves into a cell."""
    if isinstance(entry, Count):
        return 0
    return sum(quantity for moved, quantity in deltas(entry) if moved == cell)

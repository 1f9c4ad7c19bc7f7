"""Stock derived from entries: the SQLite form of `wire_protocol.stock`.

A gateway's own entries come in the order of their clock, so they only add to what is there, except what a device has
delivered late. Entries of the site's other gateways come late, as does a verdict of the cloud: then the cells concerned
are replayed from the count before, because a count replaces what was before it.

Invariant: everything runs in the caller's transaction. Invariant: what a count adds to a cell is taken from `@adjust`.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from edge_agent.errors import OutOfDomain
from edge_agent.ledger import stock_digest
from edge_agent.ledger.database import Connection
from edge_agent.ledger.sql import statement
from wire_protocol.entries import ENTRY, Count, LedgerEntry, Movement
from wire_protocol.names import ADJUST
from wire_protocol.stock import BALANCE_MAX, Balance, Cell, EntryKey, counted_cell, deltas, in_domain

OWN: Final = 0  # the log of the ledger's own entries
CHUNK_ENTRIES: Final = 10_000

Row = tuple[int | str | None, ...]


class Origin(NamedTuple):
    """Whose log it is."""

    gateway: str
    epoch: str


class Keys:
    """Entry keys as the ledger stores them: the clock, the number of the log, the sequence number."""

    def __init__(self, connection: Connection) -> None:
        self._origins = {log: Origin(gateway, epoch) for log, gateway, epoch in connection.execute(statement("logs"))}
        self._logs: dict[tuple[str, str], int] = {
            origin: log for log, origin in sorted(self._origins.items(), reverse=True)
        }

    def all(self) -> list[int]:
        """The numbers of all logs that are booked."""
        return list(self._origins)

    def others(self) -> list[int]:
        """The logs other than the ledger's own."""
        return [log for log in self._origins if log != OWN]

    def own(self) -> list[int]:
        """The logs of this gateway, older ones included."""
        return [log for log, origin in self._origins.items() if origin.gateway == self._origins[OWN].gateway]

    def key(self, hlc: int, log: int, seq: int) -> EntryKey:
        """The key of an entry of a log."""
        gateway, epoch = self._origins[log]
        return EntryKey(hlc, gateway, epoch, seq)

    def columns(self, key: EntryKey | None) -> tuple[int | None, int | None, int | None]:
        """The columns of a key: hlc, log, seq."""
        if key is None:
            return None, None, None
        hlc, gateway, epoch, seq = key
        return hlc, self._logs[gateway, epoch], seq

    def balance(self, row: tuple[Any, ...]) -> Balance:
        """A balance from its columns, as the statement `balance` selects them."""
        on_hand, moved, counted_hlc, counted_log, counted_seq, last_hlc, last_log, last_seq = row
        counted = None if counted_hlc is None else self.key(counted_hlc, counted_log, counted_seq)
        last = None if last_hlc is None else self.key(last_hlc, last_log, last_seq)
        return Balance(on_hand, moved, counted, last)

    def balance_columns(self, balance: Balance) -> Row:
        """The columns of a balance."""
        return (balance.on_hand, balance.moved, *self.columns(balance.counted), *self.columns(balance.last))


class Derivation:
    """Books entries of any log, in any order, and writes what changed.

    `bounded` refuses what would take a cell beyond `stock.BALANCE_MAX`: at the door where goods are booked, where
    somebody can act. What other gateways have booked, and the cloud has taken, is booked here too.
    """

    def __init__(self, connection: Connection, *, bounded: bool = False) -> None:
        self._connection, self._bounded = connection, bounded
        self._moved: dict[Cell, int] = {}
        self._keys = Keys(connection)
        self._balances: dict[Cell, Balance] = {}
        self._on_hand: dict[Cell, int] = {}
        self._disturbed: dict[Cell, EntryKey] = {}

    def apply(self, entries: Iterable[tuple[int, int, LedgerEntry]]) -> None:
        """Book entries: (log, seq, entry)."""
        rows = [self._book(log, seq, entry) for log, seq, entry in entries]
        self._connection.executemany(statement("insert_movement"), rows)
        self._write()

    def withdraw(self, log: int, seq: int) -> None:
        """Take an entry out of all derived stock: the cloud has said that it does not count."""
        row = self._connection.execute(statement("movement_row"), (log, seq)).fetchone()
        if row is None:
            return
        hlc, kind, sku, lot, quantity, source, destination, variance = row
        self._connection.execute(statement("delete_movement"), (log, seq))
        key = self._keys.key(hlc, log, seq)
        if kind == "count":
            self._adjust(Cell(destination, sku, lot), -variance)
            self._disturb(Cell(destination, sku, lot), key)
        else:
            for location, moved in ((source, quantity), (destination, -quantity)):
                self._take_back(Cell(location, sku, lot), key, moved)
        self._write()

    def _book(self, log: int, seq: int, entry: LedgerEntry) -> Row:
        key, lot = self._keys.key(entry.hlc, log, seq), entry.lot or ""
        if isinstance(entry, Count):
            variance = self._count(key, entry)
            return log, seq, entry.hlc, entry.kind, entry.sku, lot, entry.quantity, None, entry.location, variance
        for cell, quantity in deltas(entry):
            before = self._balance(cell)
            if before.counted is not None and key < before.counted:
                self._disturb(cell, key)
            self._balances[cell] = before.after_movement(key, quantity)
        return log, seq, entry.hlc, entry.kind, entry.sku, lot, entry.quantity, entry.source, entry.destination, None

    def _count(self, key: EntryKey, count: Count) -> int:
        """Book a count; its variance, which is still to be found where the cell must be replayed."""
        cell = counted_cell(count)
        before = self._balance(cell)
        if before.looks_back(key):
            self._disturb(cell, key)
            return 0
        variance = count.quantity - before.on_hand
        self._balances[cell] = before.after_count(key, count.quantity, moved_since=0)
        self._adjust(cell, variance)
        return variance

    def _adjust(self, cell: Cell, variance: int) -> None:
        """Book a variance against `@adjust`. It is not a movement: `moved` there holds explicit corrections only."""
        adjust = cell._replace(location=ADJUST)
        booked = self._balance(adjust)
        self._balances[adjust] = booked._replace(on_hand=booked.on_hand - variance)

    def _take_back(self, cell: Cell, key: EntryKey, moved: int) -> None:
        before = self._balance(cell)
        if before.counted is not None and key < before.counted:
            self._disturb(cell, key)
        last = self._connection.execute(statement("last_movement"), cell._asdict()).fetchone()
        after = before.after_movement(key, moved)
        self._balances[cell] = after._replace(last=self._keys.key(*last) if last else None)

    def _disturb(self, cell: Cell, key: EntryKey) -> None:
        """The cell must be replayed from this key on."""
        self._disturbed[cell] = min(key, self._disturbed.get(cell, key))

    def _write(self) -> None:
        for cell, key in self._disturbed.items():
            self._replay(cell, key)
        if self._bounded:
            self._require_domain()
        stock_digest.add(self._connection, self._on_hand, self._balances.items())
        self._connection.executemany(
            statement("upsert_balance"),
            [(*cell, *self._keys.balance_columns(balance)) for cell, balance in self._balances.items()],
        )
        self._balances.clear()
        self._on_hand.clear()
        self._moved.clear()
        self._disturbed.clear()

    def _require_domain(self) -> None:
        for cell, balance in self._balances.items():
            for now, before in ((balance.on_hand, self._on_hand[cell]), (balance.moved, self._moved[cell])):
                if not in_domain(now) and abs(now) > abs(before):
                    raise OutOfDomain(f"The stock of {cell.sku} at {cell.location} would be beyond {BALANCE_MAX}.")

    def _replay(self, cell: Cell, key: EntryKey) -> None:
        """Go through a cell again from the last count before a key: on hand, and the variance of each count since."""
        begin = self._connection.execute(statement("count_before"), {**cell._asdict(), **key._asdict()}).fetchone()
        counted, book = (None, 0) if begin is None else (self._keys.key(*begin[:3]), begin[3])
        history = {**cell._asdict(), "hlc": counted.hlc if counted else 0}
        for hlc, log, seq, kind, quantity, source, stored in self._connection.execute(
            statement("cell_history"), history
        ).fetchall():
            at = self._keys.key(hlc, log, seq)
            if counted is not None and at <= counted:
                continue
            if kind != "count":
                book += -quantity if source == cell.location else quantity
                continue
            variance = quantity - book
            if variance != stored:
                self._connection.execute(statement("set_variance"), (variance, log, seq))
                self._adjust(cell, variance - (stored or 0))
            book, counted = quantity, at
        self._balances[cell] = self._balance(cell)._replace(on_hand=book, counted=counted)

    def _balance(self, cell: Cell) -> Balance:
        known = self._balances.get(cell)
        if known is None:
            row = self._connection.execute(statement("balance"), cell).fetchone()
            known = self._balances[cell] = self._keys.balance(row) if row else Balance()
            self._on_hand[cell], self._moved[cell] = known.on_hand, known.moved
        return known


def rebuild(connection: Connection, progress: Callable[[int], None] = lambda _: None) -> int:
    """Derive balances, history and event ids again from the entries, in the caller's transaction; how many entries."""
    for table in ("balance", "movement", "seen", "late"):
        connection.execute(statement(f"clear_{table}"))
    connection.execute(statement("derive_late"))
    stock_digest.reset(connection)
    mine, done = set(Keys(connection).own()), 0
    for source in ("entries_that_count", "site_entries"):
        cursor = connection.execute(statement(source))
        while chunk := cursor.fetchmany(CHUNK_ENTRIES):
            entries = [(log, seq, ENTRY.validate_json(body)) for log, seq, body in chunk]
            Derivation(connection).apply(
                (log, seq, entry) for log, seq, entry in entries if isinstance(entry, Movement | Count)
            )
            note_events(connection, [part for part in entries if part[0] in mine])
            done += len(chunk)
            progress(len(chunk))
    # A rejected entry does not count, but its event was taken all the same.
    rejected = connection.execute(statement("rejected_entries")).fetchall()
    note_events(connection, [(OWN, seq, ENTRY.validate_json(body)) for seq, body in rejected])
    stock_digest.note_sealed(connection)
    return done + len(rejected)


def note_events(connection: Connection, entries: Iterable[tuple[int, int, Any]]) -> None:
    """Remember the device events of entries of this gateway's own logs, so that none is taken again."""
    rows = [(entry.device, entry.event, seq, log) for log, seq, entry in entries if entry.device and entry.event]
    connection.executemany(statement("insert_seen_elsewhere"), rows)

"""The ledger against itself: verify that nothing was changed, rebuild what is derived.

`verify` reads every entry once: numbers without a gap, the clock rising but for what came late, the digest chain whole,
each body valid, each kept frame decodable, chained and made of exactly the entries it claims, and every derived table
equal to what the entries give by the oracle's algebra.

Invariant: `verify` writes nothing; `rebuild` writes derived tables only.
"""

import heapq
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from edge_agent.errors import UNREADABLE
from edge_agent.ledger import database, derivation, streams
from edge_agent.ledger.connections import Connection
from edge_agent.ledger.derivation import OWN, Keys
from edge_agent.ledger.ledger import Ledger, chain
from edge_agent.ledger.sql import statement
from wire_protocol import frames, proof
from wire_protocol.entries import ENTRY, Count, LedgerEntry, Movement
from wire_protocol.errors import InvalidFrame
from wire_protocol.names import ADJUST
from wire_protocol.stock import Balance, Cell, EntryKey, counted_cell, deltas
from wire_protocol.topics import STREAMS, Stream

CHUNK_ENTRIES: Final = 10_000
FINDINGS_MAX: Final = 100
EMPTY_BALANCE: Final = (0, 0, None, None, None, None, None, None)

Progress = Callable[[int], None]


@dataclass(slots=True)
class Audit:
    """What `verify` found; an empty `findings` means that the ledger is whole."""

    entries: int = 0
    frames: int = 0
    cells: int = 0
    findings: list[str] = field(default_factory=list)
    derived_only: bool = True
    """Whether a rebuild mends all of it: what is derived differs, what happened does not."""

    def add(self, finding: str, *, derived: bool = False) -> None:
        """Note a finding; beyond 100 they are dropped."""
        self.derived_only &= derived
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)


@dataclass(slots=True)
class _Book:
    """Derived tables computed from entries in memory, in the order of their keys.

    Written beside `Derivation`, not through it: an audit that shared its code would share its mistakes.
    """

    keys: Keys
    balances: dict[Cell, Balance] = field(default_factory=dict)

    def add(self, key: EntryKey, entry: LedgerEntry) -> int | None:
        """Book an entry; returns the variance of a count."""
        if isinstance(entry, Count):
            cell = counted_cell(entry)
            before = self.balances.get(cell, Balance())
            variance = entry.quantity - before.on_hand
            self.balances[cell] = before.after_count(key, entry.quantity, moved_since=0)
            adjust = Cell(ADJUST, cell.sku, cell.lot)
            booked = self.balances.get(adjust, Balance())
            self.balances[adjust] = booked._replace(on_hand=booked.on_hand - variance)
            return variance
        for cell, quantity in deltas(entry):
            self.balances[cell] = self.balances.get(cell, Balance()).after_movement(key, quantity)
        return None


def verify(connection: Connection, progress: Progress = lambda _: None) -> Audit:
    """Check the whole ledger, in one consistent snapshot; `progress` gets the number of entries checked since.

    Raises:
        EdgeError: the file cannot be read at all.
    """
    audit = Audit()
    connection.execute("BEGIN")
    try:
        facts = database.meta(connection)
        for row in connection.execute("PRAGMA quick_check").fetchall():
            if row[0] != "ok":
                audit.add(f"SQLite: {row[0]}")
        book = _Book(Keys(connection))
        late = _late_entries(connection)
        runs = [_own_entries(connection, audit, progress)]
        runs += [
            _site_entries(connection, log, {entry.key.seq for entry in late[log]}, audit, progress)
            for log in book.keys.others()
        ]
        runs += [iter(sorted(entries, key=itemgetter(0))) for entries in late.values()]
        if [row[0] for row in connection.execute(statement("late"))] != [entry.key.seq for entry in late[OWN]]:
            audit.add("table late differs from the entries")
        _verify_derived(connection, heapq.merge(*runs, key=itemgetter(0)), book, audit, late)
        _verify_balances(connection, book, audit)
        _verify_digest(connection, book, audit)
        for stream in STREAMS:
            _verify_frames(connection, facts["gateway"], facts["epoch"], stream, audit)
    except database.DatabaseError as error:
        audit.add(f"SQLite: {error}")
    except UNREADABLE as error:
        audit.add(f"a row cannot be read: {str(error).partition(chr(10))[0]}")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return audit


class _Entry(NamedTuple):
    """An entry that was read: its key first, so that entries of several logs are merged by it."""

    key: EntryKey
    log: int
    entry: LedgerEntry
    counts: bool


def _own_entries(connection: Connection, audit: Audit, progress: Progress) -> Iterator[_Entry]:
    """The ledger's own entries: without a gap, in the order of the clock, the digest chain whole, each body valid."""
    keys, digest, last_seq, last_hlc = Keys(connection), b"", 0, -1
    rejected = {seq for seq, _ in connection.execute(statement("rejected_entries"))}
    for chunk in _chunks(connection.execute(statement("all_entries"))):
        for seq, hlc, body, stored in chunk:
            if seq != last_seq + 1:
                audit.add(f"entry {seq} follows entry {last_seq}")
            digest = chain(digest, body)
            if digest != stored:
                audit.add(f"entry {seq} does not match its digest")
                digest = stored
            last_seq = seq
            entry = _read(body, hlc, f"entry {seq}", audit)
            if entry is not None and entry.late_ms is not None:
                continue
            if hlc < last_hlc:
                audit.add(f"entry {seq} is earlier than the entry before it")
            last_hlc = hlc
            if entry is not None:
                yield _Entry(keys.key(hlc, OWN, seq), OWN, entry, seq not in rejected)
        audit.entries += len(chunk)
        progress(len(chunk))


def _site_entries(
    connection: Connection, log: int, late: Container[int], audit: Audit, progress: Progress
) -> Iterator[_Entry]:
    """The entries of another log; what the cloud has rejected is not among them, so numbers may be missing.

    Its clock is its gateway's to keep in order: what is out of order is `late`, and no damage of this ledger.
    """
    keys = Keys(connection)
    for chunk in _chunks(connection.execute(statement("entries_of_log"), (log,))):
        for seq, hlc, body in chunk:
            place = f"entry {seq} of log {log}"
            entry = _read(body, hlc, place, audit)
            if entry is not None and seq not in late:
                yield _Entry(keys.key(hlc, log, seq), log, entry, counts=True)
        audit.entries += len(chunk)
        progress(len(chunk))


def _late_entries(connection: Connection) -> dict[int, list[_Entry]]:
    """What is not in the order of its log: read before the rest, because it goes before what was written before it."""
    keys = Keys(connection)
    rejected = {seq for seq, _ in connection.execute(statement("rejected_entries"))}
    late: dict[int, list[_Entry]] = {log: [] for log in keys.all()}
    for log, seq, hlc, body in connection.execute(statement("late_entries")):
        # What is wrong with a body is found where all are read.
        entry = _read(body, hlc, "", Audit())
        if entry is not None:
            late[log].append(_Entry(keys.key(hlc, log, seq), log, entry, log != OWN or seq not in rejected))
    for entries in late.values():
        entries.sort(key=lambda entry: entry.key.seq)
    return late


def _read(body: str, hlc: int, place: str, audit: Audit) -> LedgerEntry | None:
    try:
        entry = ENTRY.validate_json(body)
    except ValidationError as error:
        audit.add(f"{place} is not valid: {error.error_count()} problem(s)")
        return None
    if not isinstance(entry, Movement | Count) or entry.hlc != hlc:
        audit.add(f"{place} contradicts its columns")
        return None
    return entry


class _Seen:
    """The device events of one log, asked for in the order of its entries; `late` are those that are not in order."""

    def __init__(self, connection: Connection, log: int, late: Container[int]) -> None:
        self._connection, self._log, self._late = connection, log, late
        self._rows = (row for row in connection.execute(statement("seen_of_log"), (log,)) if row[2] not in late)
        self._next = next(self._rows, None)

    def has(self, device: str, event: str, seq: int) -> bool:
        """Whether an event is noted: for this entry, or for one of another log of the gateway that has it as well."""
        if self._next == (device, event, seq):
            self._next = next(self._rows, None)
            return True
        found = self._connection.execute(statement("seen_event"), (device, event)).fetchone()
        return found is not None and (found != (self._log, seq) or seq in self._late)

    def left(self) -> bool:
        """Whether there are events that no entry has asked for."""
        return self._next is not None


class _Movements:
    """The history of one log, asked for in the order of its entries; `late` are those that are not in order."""

    def __init__(self, connection: Connection, log: int, late: Container[int]) -> None:
        self._connection, self._log, self._late = connection, log, late
        self._rows = (row for row in connection.execute(statement("movements_of_log"), (log,)) if row[0] not in late)

    def has(self, seq: int, expected: tuple[Any, ...] | None) -> bool:
        """Whether the history has this of an entry; None for one that does not count."""
        if seq in self._late:
            found = self._connection.execute(statement("movement_of_entry"), (self._log, seq)).fetchone()
            return bool(found == expected)
        return expected is None or next(self._rows, None) == expected

    def left(self) -> bool:
        """Whether there are rows that no entry has asked for."""
        return next(self._rows, None) is not None


def _verify_derived(
    connection: Connection, entries: Iterable[_Entry], book: _Book, audit: Audit, late: Mapping[int, list[_Entry]]
) -> None:
    """Book every entry, and compare the history and the event ids with what that gives."""
    apart = {log: {entry.key.seq for entry in found} for log, found in late.items()}
    movements = {log: _Movements(connection, log, apart[log]) for log in book.keys.all()}
    seen = {log: _Seen(connection, log, apart[log]) for log in book.keys.own()}
    for key, log, entry, counts in entries:
        expected: tuple[Any, ...] | None = None
        if counts:
            lot, variance = entry.lot or "", book.add(key, entry)
            ends = (None, entry.location) if isinstance(entry, Count) else (entry.source, entry.destination)
            expected = (key.seq, entry.hlc, entry.kind, entry.sku, lot, entry.quantity, *ends, variance)
        if not movements[log].has(key.seq, expected):
            audit.add(f"table movement differs at entry {key.seq}{_of_log(log)}", derived=True)
        if log in seen and entry.device and entry.event and not seen[log].has(entry.device, entry.event, key.seq):
            audit.add(f"table seen differs at entry {key.seq}{_of_log(log)}", derived=True)
    for log, rows in movements.items():
        if rows.left():
            audit.add(f"table movement has rows that no entry gives{_of_log(log)}", derived=True)
    for log, events in seen.items():
        if events.left():
            audit.add(f"table seen has rows that no entry gives{_of_log(log)}", derived=True)


def _of_log(log: int) -> str:
    return "" if log == OWN else f" of log {log}"


def _verify_balances(connection: Connection, book: _Book, audit: Audit) -> None:
    stored = {Cell(*row[:3]): tuple(row[3:]) for row in connection.execute(statement("all_balances"))}
    audit.cells = len(book.balances)
    for cell in sorted(stored.keys() | book.balances.keys()):
        # A cell all of whose entries were rejected is as good as none.
        has = stored.get(cell, EMPTY_BALANCE)
        expected = book.keys.balance_columns(book.balances.get(cell, Balance()))
        if has != expected:
            place = f"{cell.sku}{f' lot {cell.lot}' if cell.lot else ''} at {cell.location}"
            audit.add(
                f"balance of {place} is {has[0] if cell in stored else 'nothing'}, "
                f"the entries give {expected[0] if cell in book.balances else 'nothing'}",
                derived=True,
            )


def _verify_digest(connection: Connection, book: _Book, audit: Audit) -> None:
    """The digest that the cloud compares must be that of what the entries give."""
    expected = proof.stock_digest((cell, balance.on_hand) for cell, balance in book.balances.items())
    kept = connection.execute(statement("stock_digest")).fetchone()
    if tuple(kept[:2]) != (expected, sum(1 for balance in book.balances.values() if balance.on_hand)):
        audit.add("the stock digest is not that of the balances", derived=True)


def _verify_frames(connection: Connection, gateway: str, epoch: str, stream: Stream, audit: Audit) -> None:
    at = streams.position(connection, stream)
    previous: tuple[int, int, str] | None = None
    for name, number, first_seq, entries, digest, encoded in connection.execute(statement("all_frames")):
        if name != stream:
            continue
        audit.frames += 1
        if previous is None and number == 1:
            previous = (0, 0, frames.genesis(gateway, epoch, stream))
        problem = _frame_problem(connection, stream, (number, first_seq, entries, digest), encoded, previous)
        if problem:
            audit.add(f"frame {number} of {stream} {problem}")
        previous = (number, first_seq + entries - 1, digest)
    if previous is not None and previous != (at.sealed_frame, at.sealed_seq, at.sealed_digest):
        audit.add(f"the last frame of {stream} is not the one the stream ended with")


def _frame_problem(
    connection: Connection,
    stream: Stream,
    row: tuple[int, int, int, str],
    encoded: bytes,
    previous: tuple[int, int, str] | None,
) -> str | None:
    number, first_seq, entries, digest = row
    try:
        frame = frames.decode(encoded)
    except InvalidFrame as error:
        return f"cannot be decoded: {error}"
    header = frame.header
    if (header.frame, header.first_seq, header.count, frame.digest) != (number, first_seq, entries, digest):
        return "does not match its digest or its columns"
    if previous is not None and (number - 1, first_seq - 1, header.prev) != previous:
        return "does not follow the frame before it"
    if stream == "ledger":
        bodies = connection.execute(statement("entries_to_seal"), (first_seq - 1, entries)).fetchall()
        if [ENTRY.validate_python(row).body() for row in frame.rows] != [body for _, body in bodies]:
            return "does not hold the entries of the ledger"
    return None


def rebuild(ledger: Ledger, progress: Progress = lambda _: None) -> int:
    """Derive balances, history and event ids again from the entries, in one transaction; returns how many entries."""
    with database.transaction(ledger.connection):
        return derivation.rebuild(ledger.connection, progress)


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(rows, CHUNK_ENTRIES)):
        yield chunk

"""The ledger against itself: verify that nothing was changed, rebuild what is derived.

`verify` reads every entry once: numbers without a gap, the clock rising, the digest chain whole, each body valid, each
kept frame decodable, chained and made of exactly the entries it claims, and every derived table equal to what the
entries give by the oracle's algebra.

Invariant: `verify` writes nothing; `rebuild` writes derived tables only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from pydantic import ValidationError

from edge_agent import database, outbox
from edge_agent.database import Connection
from edge_agent.ledger import Derivation, Ledger, balance_row, chain
from edge_agent.sql import statement
from wire_protocol import frames
from wire_protocol.entries import ENTRY, Count, LedgerEntry, Movement
from wire_protocol.errors import InvalidFrame
from wire_protocol.names import ADJUST
from wire_protocol.stock import Balance, Cell, EntryKey, counted_cell, deltas
from wire_protocol.topics import STREAMS, Stream

CHUNK_ENTRIES: Final = 10_000
FINDINGS_MAX: Final = 100

Progress = Callable[[int], None]


@dataclass(slots=True)
class Audit:
    """What `verify` found; an empty `findings` means that the ledger is whole."""

    entries: int = 0
    frames: int = 0
    cells: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, finding: str) -> None:
        """Note a finding; more than 100 help nobody."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)


@dataclass(slots=True)
class _Book:
    """Derived tables computed from entries in memory, in the ledger's order.

    Written beside `Derivation`, not through it: an audit that shared its code would share its mistakes.
    """

    gateway: str
    balances: dict[Cell, Balance] = field(default_factory=dict)

    def add(self, seq: int, entry: LedgerEntry) -> int | None:
        """Book an entry; returns the variance of a count."""
        key = EntryKey(entry.hlc, self.gateway, seq)
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
    """Check the whole ledger, in one consistent snapshot; `progress` is told how many entries were checked since.

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
        book = _verify_entries(connection, facts["gateway"], audit, progress)
        _verify_balances(connection, book, audit)
        for stream in STREAMS:
            _verify_frames(connection, facts["gateway"], facts["epoch"], stream, audit)
    except database.DatabaseError as error:
        audit.add(f"SQLite: {error}")
    finally:
        connection.execute("ROLLBACK")
    return audit


def _verify_entries(connection: Connection, gateway: str, audit: Audit, progress: Progress) -> _Book:
    book, digest, last_seq, last_hlc = _Book(gateway), b"", 0, -1
    movements = connection.execute(statement("all_movements"))
    seen = connection.execute(statement("all_seen"))
    for chunk in _chunks(connection.execute(statement("all_entries"))):
        for seq, hlc, body, stored in chunk:
            if seq != last_seq + 1:
                audit.add(f"entry {seq} follows entry {last_seq}")
            if hlc <= last_hlc:
                audit.add(f"entry {seq} is not later than the entry before it")
            digest = chain(digest, body)
            if digest != stored:
                audit.add(f"entry {seq} does not match its digest")
                digest = stored
            last_seq, last_hlc = seq, hlc
            _verify_entry(seq, hlc, body, book, audit, movements, seen)
        audit.entries += len(chunk)
        progress(len(chunk))
    for name, rows in (("movement", movements), ("seen", seen)):
        if rows.fetchone() is not None:
            audit.add(f"table {name} has rows that no entry gives")
    return book


def _verify_entry(  # noqa: PLR0917 - one row of each table, side by side
    seq: int, hlc: int, body: str, book: _Book, audit: Audit, movements: Iterator[Any], seen: Iterator[Any]
) -> None:
    try:
        entry = ENTRY.validate_json(body)
    except ValidationError as error:
        audit.add(f"entry {seq} is not valid: {error.error_count()} problem(s)")
        return
    if not isinstance(entry, Movement | Count) or entry.hlc != hlc:
        audit.add(f"entry {seq} contradicts its columns")
        return
    variance = book.add(seq, entry)
    ends = (None, entry.location) if isinstance(entry, Count) else (entry.source, entry.destination)
    expected = (seq, hlc, entry.kind, entry.sku, entry.lot or "", entry.quantity, *ends, variance)
    if next(movements, None) != expected:
        audit.add(f"table movement differs at entry {seq}")
    caused = entry.device is not None and entry.event is not None
    if caused and next(seen, None) != (entry.device, entry.event, seq):
        audit.add(f"table seen differs at entry {seq}")


def _verify_balances(connection: Connection, book: _Book, audit: Audit) -> None:
    stored = {Cell(*row[:3]): tuple(row[3:]) for row in connection.execute(statement("all_balances"))}
    audit.cells = len(book.balances)
    for cell in sorted(stored.keys() | book.balances.keys()):
        expected = balance_row(book.balances[cell]) if cell in book.balances else None
        if stored.get(cell) != expected:
            place = f"{cell.sku}{f' lot {cell.lot}' if cell.lot else ''} at {cell.location}"
            has = stored[cell][0] if cell in stored else "nothing"
            audit.add(f"balance of {place} is {has}, the entries give {expected[0] if expected else 'nothing'}")


def _verify_frames(connection: Connection, gateway: str, epoch: str, stream: Stream, audit: Audit) -> None:
    at = outbox.position(connection, stream)
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
    """Derive balances, history and event ids anew from the entries, in one transaction; returns how many entries."""
    connection, done = ledger.connection, 0
    with database.transaction(connection):
        for table in ("balance", "movement", "seen"):
            connection.execute(statement(f"clear_{table}"))
        derivation = Derivation(connection, ledger.gateway)
        for chunk in _chunks(connection.execute(statement("all_entries"))):
            entries = [(seq, ENTRY.validate_json(body)) for seq, _, body, _ in chunk]
            derivation.apply((seq, entry) for seq, entry in entries if isinstance(entry, Movement | Count))
            ids = [(entry.device, entry.event, seq) for seq, entry in entries if entry.device and entry.event]
            connection.executemany(statement("insert_seen"), ids)
            done += len(chunk)
            progress(len(chunk))
    return done


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(rows, CHUNK_ENTRIES)):
        yield chunk

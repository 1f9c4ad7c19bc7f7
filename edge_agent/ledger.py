"""The stock ledger: entries appended, everything about stock derived in the same transaction.

Several processes may append (the agent, and a technician's command line): each transaction takes the write lock first
and goes on from the last entry it finds, so the sequence is contiguous and the clock never repeats.

Invariant: an entry is appended, never updated. Invariant: a device event id is in the ledger at most once.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from edge_agent import database
from edge_agent.clock import Clock, new_epoch
from edge_agent.database import Connection
from edge_agent.drafts import Draft, ReadingDraft
from edge_agent.errors import LedgerCorrupt, LedgerForeign
from edge_agent.sql import statement
from wire_protocol import clock as hlc_clock
from wire_protocol import frames, names
from wire_protocol.entries import Count, LedgerEntry
from wire_protocol.stock import Balance, Cell, EntryKey, counted_cell, deltas
from wire_protocol.topics import STREAMS

ADJUST = names.ADJUST


class Tail(NamedTuple):
    """Where the ledger ends: what the next entry follows."""

    seq: int
    hlc: int
    digest: bytes


EMPTY = Tail(0, 0, b"")


@dataclass(slots=True)
class Ledger:
    """An open ledger with the right to write. Make one with `create` or `open`, as a context manager."""

    connection: Connection
    clock: Clock
    gateway: str
    epoch: str

    @classmethod
    @contextmanager
    def create(cls, path: Path, gateway: str, clock: Clock, **facts: str | None) -> Iterator[Self]:
        """Create a ledger file for a gateway, in a new epoch.

        Raises:
            LedgerExists: there is a file already.
            InvalidName: the gateway's name is not well formed.
        """
        from edge_agent import schema  # noqa: PLC0415 - as in database.open_writer

        names.gateway(gateway)
        connection = database.create(path)
        try:
            schema.migrate(connection)
            epoch = new_epoch(clock)
            with database.transaction(connection):
                for key, value in {"gateway": gateway, "epoch": epoch, **facts}.items():
                    if value is not None:
                        connection.execute(statement("set_meta"), (key, value))
                for stream in STREAMS:
                    connection.execute(statement("insert_stream"), (stream, frames.genesis(gateway, epoch, stream)))
            yield cls(connection, clock, gateway, epoch)
        finally:
            connection.close()

    @classmethod
    @contextmanager
    def open(cls, path: Path, clock: Clock) -> Iterator[Self]:
        """Open a ledger file to write to it.

        Raises:
            LedgerMissing, LedgerForeign: there is no ledger of ours here.
        """
        connection = database.open_writer(path)
        try:
            facts = database.meta(connection)
            if not {"gateway", "epoch"} <= facts.keys():
                raise LedgerForeign(f"{path} was never initialised.", hint="Remove it and run: stocktide edge init")
            yield cls(connection, clock, facts["gateway"], facts["epoch"])
        finally:
            connection.close()

    def tail(self) -> Tail:
        """The end of the ledger; call it inside the transaction that appends."""
        row = self.connection.execute(statement("tail")).fetchone()
        return Tail(*row) if row else EMPTY

    def append(self, drafts: Sequence[Draft]) -> list[int | None]:
        """Append movements and counts, inside a transaction.

        Returns:
            The sequence number of each draft; None for a device event the ledger already has.
        """
        self._note_boot()
        tail = self.tail()
        seqs: list[int | None] = []
        added: list[tuple[Tail, str, LedgerEntry]] = []
        for draft in drafts:
            seq = tail.seq + 1
            if draft.device is not None and draft.event is not None:
                key = (draft.device, draft.event, seq)
                if self.connection.execute(statement("insert_seen"), key).rowcount == 0:
                    seqs.append(None)
                    continue
            hlc = hlc_clock.tick(tail.hlc, self.clock.now_ms())
            entry = draft.entry(hlc, self.clock.boot, self.clock.mono_ms())
            body = entry.body()
            tail = Tail(seq, hlc, chain(tail.digest, body))
            added.append((tail, body, entry))
            seqs.append(seq)
        self.connection.executemany(
            statement("insert_entry"), [(at.seq, at.hlc, body, at.digest) for at, body, _ in added]
        )
        Derivation(self.connection, self.gateway).apply((at.seq, entry) for at, _, entry in added)
        return seqs

    def append_readings(self, drafts: Sequence[ReadingDraft]) -> list[bool]:
        """Append sensor readings, inside a transaction; False for one the ring already has."""
        self._note_boot()
        row = self.connection.execute(statement("reading_tail")).fetchone()
        last, taken = (row[1] if row else 0), []
        for draft in drafts:
            hlc = hlc_clock.tick(last, self.clock.now_ms())
            body = draft.entry(hlc, self.clock.boot, self.clock.mono_ms()).body()
            added = self.connection.execute(
                statement("insert_reading"), (hlc, draft.device, draft.event, body)
            ).rowcount
            last = hlc if added else last
            taken.append(bool(added))
        return taken

    def _note_boot(self) -> None:
        self.connection.execute(statement("insert_boot"), (self.clock.boot, self.clock.now_ms()))


def chain(previous: bytes, body: str) -> bytes:
    """The digest of an entry: BLAKE2b-128 over the digest before it and its body."""
    return hashlib.blake2b(previous + body.encode(), digest_size=16).digest()


class Derivation:
    """Derives balances and history from entries, in the order of the ledger.

    The gateway's own entries come in the order of their clock, so a count never has to look back; that is checked.
    """

    def __init__(self, connection: Connection, gateway: str) -> None:
        self._connection = connection
        self._gateway = gateway
        self._balances: dict[Cell, Balance] = {}

    def apply(self, entries: Iterable[tuple[int, LedgerEntry]]) -> None:
        """Book entries and write what changed."""
        self._connection.executemany(statement("insert_movement"), [self._book(seq, entry) for seq, entry in entries])
        self._connection.executemany(
            statement("upsert_balance"), [(*cell, *balance_row(balance)) for cell, balance in self._balances.items()]
        )
        self._balances.clear()

    def _book(self, seq: int, entry: LedgerEntry) -> tuple[int | str | None, ...]:
        key = EntryKey(entry.hlc, self._gateway, seq)
        lot = entry.lot or ""
        if isinstance(entry, Count):
            variance = self._count(key, entry)
            return seq, entry.hlc, entry.kind, entry.sku, lot, entry.quantity, None, entry.location, variance
        for cell, quantity in deltas(entry):
            self._balances[cell] = self._balance(cell).after_movement(key, quantity)
        return seq, entry.hlc, entry.kind, entry.sku, lot, entry.quantity, entry.source, entry.destination, None

    def _count(self, key: EntryKey, count: Count) -> int:
        cell = counted_cell(count)
        before = self._balance(cell)
        if before.looks_back(key):
            raise LedgerCorrupt(f"Entry {key.seq} is older than an entry before it.")
        variance = count.quantity - before.on_hand
        self._balances[cell] = before.after_count(key, count.quantity, moved_since=0)
        adjust = Cell(ADJUST, cell.sku, cell.lot)
        booked = self._balance(adjust)
        # A variance is not a movement: `moved` of @adjust holds explicit corrections only.
        self._balances[adjust] = booked._replace(on_hand=booked.on_hand - variance)
        return variance

    def _balance(self, cell: Cell) -> Balance:
        known = self._balances.get(cell)
        if known is None:
            row = self._connection.execute(statement("balance"), cell).fetchone()
            known = self._balances[cell] = read_balance(row, self._gateway) if row else Balance()
        return known


def read_balance(row: Sequence[int | None], gateway: str) -> Balance:
    """A balance from its columns (on_hand, moved, counted_hlc, counted_seq, last_hlc, last_seq)."""
    on_hand, moved, counted_hlc, counted_seq, last_hlc, last_seq = row
    return Balance(
        on_hand or 0,
        moved or 0,
        EntryKey(counted_hlc, gateway, counted_seq or 0) if counted_hlc is not None else None,
        EntryKey(last_hlc, gateway, last_seq or 0) if last_hlc is not None else None,
    )


def balance_row(balance: Balance) -> tuple[int | None, ...]:
    """The columns of a balance."""
    counted, last = balance.counted, balance.last
    return (
        balance.on_hand,
        balance.moved,
        counted.hlc if counted else None,
        counted.seq if counted else None,
        last.hlc if last else None,
        last.seq if last else None,
    )

"""The stock ledger: entries appended, everything about stock derived in the same transaction.

Several processes may append (the agent, and a technician's command line): each transaction takes the write lock first
and goes on from the last entry it finds, so the sequence is contiguous and the clock never repeats.

The clock is a hybrid logical one. Its physical half is the true time where an acknowledgement gave it during this boot,
and the wall clock otherwise; entries of the site's other gateways that are known here are earlier than whatever is
appended next.

Invariant: an entry is appended, never updated. Invariant: a device event id is in the ledger at most once.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from edge_agent.errors import LedgerForeign
from edge_agent.ledger import database
from edge_agent.ledger.clock import Clock, new_epoch
from edge_agent.ledger.database import Connection, Progress
from edge_agent.ledger.derivation import OWN, Derivation
from edge_agent.ledger.drafts import Draft, ReadingDraft
from edge_agent.ledger.sql import statement
from wire_protocol import clock as hlc_clock
from wire_protocol import frames, names
from wire_protocol.entries import LedgerEntry
from wire_protocol.times import AHEAD_MS_MAX
from wire_protocol.topics import STREAMS


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
    zero_ms: int | None = None
    """The true time at which this boot's monotonic clock was zero; None until an acknowledgement gives the time."""

    @classmethod
    @contextmanager
    def create(
        cls,
        path: Path,
        gateway: str,
        clock: Clock,
        *,
        epoch: str | None = None,
        devices: Iterable[str] = (),
        **facts: str | None,
    ) -> Iterator[Self]:
        """Create a ledger file for a gateway, in a new epoch (`epoch` is for a caller that must know it beforehand).

        The file is there with all of this, or not at all.

        Raises:
            LedgerExists: there is a file already.
            BadInput: the folder cannot be written.
            InvalidName: the gateway's name is not well formed.
        """
        names.gateway(gateway)
        epoch = epoch or new_epoch(clock)
        with database.creating(path) as connection, database.transaction(connection):
            for key, value in {"gateway": gateway, "epoch": epoch, **facts}.items():
                if value is not None:
                    connection.execute(statement("set_meta"), (key, value))
            connection.execute(statement("insert_own_log"), (OWN, gateway, epoch))
            for stream in STREAMS:
                connection.execute(statement("insert_stream"), (stream, frames.genesis(gateway, epoch, stream)))
            connection.executemany(statement("insert_device"), [(name, "device") for name in devices])
        with cls.open(path, clock) as made:
            yield made

    @classmethod
    @contextmanager
    def open(cls, path: Path, clock: Clock, progress: Progress = lambda _: None) -> Iterator[Self]:
        """Open a ledger file to write to it; `progress` gets the version of a schema that is being made.

        Raises:
            LedgerMissing, LedgerForeign: there is no ledger of ours here.
            EdgeError: as `database.open_writer`.
        """
        connection = database.open_writer(path, progress)
        try:
            with database.in_our_words():
                facts = database.meta(connection)
                if not {"gateway", "epoch"} <= facts.keys():
                    raise LedgerForeign(f"{path} was never initialised.", hint="Run: stocktide edge init")
                ledger = cls(connection, clock, facts["gateway"])
                ledger.zero_ms = ledger.known_zero_ms()
            yield ledger
        finally:
            connection.close()

    @property
    def epoch(self) -> str:
        """The epoch of the own log. It is asked for, because opening a new one may be rolled back."""
        epoch: str = self.connection.execute(statement("own_log")).fetchone()[1]
        return epoch

    def known_zero_ms(self) -> int | None:
        """What the ledger knows of `zero_ms`; another process may have learnt it."""
        row = self.connection.execute(statement("boot_zero"), (self.clock.boot,)).fetchone()
        return row[0] if row else None

    def now_ms(self) -> int:
        """The time as well as it is known: Unix, milliseconds."""
        return self.clock.now_ms() if self.zero_ms is None else self.zero_ms + self.clock.mono_ms()

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
        latest = max(tail.hlc, self._observed())
        seqs: list[int | None] = []
        added: list[tuple[Tail, str, LedgerEntry]] = []
        for draft in drafts:
            seq = tail.seq + 1
            if draft.device is not None and draft.event is not None:
                key = (draft.device, draft.event, seq)
                if self.connection.execute(statement("insert_seen"), key).rowcount == 0:
                    seqs.append(None)
                    continue
            latest = hlc = hlc_clock.tick(latest, self.now_ms())
            entry = draft.entry(hlc, self.clock.boot, self.clock.mono_ms())
            body = entry.body()
            tail = Tail(seq, hlc, chain(tail.digest, body))
            added.append((tail, body, entry))
            seqs.append(seq)
        self.connection.executemany(
            statement("insert_entry"), [(at.seq, at.hlc, body, at.digest) for at, body, _ in added]
        )
        Derivation(self.connection).apply((OWN, at.seq, entry) for at, _, entry in added)
        return seqs

    def _observed(self) -> int:
        """The latest clock reading among the entries of other gateways, unless it is absurdly far ahead."""
        bound = hlc_clock.pack(self.now_ms() + AHEAD_MS_MAX)
        observed: int = self.connection.execute(statement("observed"), (bound,)).fetchone()[0]
        return observed

    def append_readings(self, drafts: Sequence[ReadingDraft]) -> list[bool]:
        """Append sensor readings, inside a transaction; False for one the ring already has."""
        self._note_boot()
        row = self.connection.execute(statement("reading_tail")).fetchone()
        last, taken = (row[1] if row else 0), []
        for draft in drafts:
            hlc = hlc_clock.tick(last, self.now_ms())
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

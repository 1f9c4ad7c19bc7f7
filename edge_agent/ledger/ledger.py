"""The stock ledger: entries appended, everything about stock derived in the same transaction.

Several processes may append (the agent, and a technician's command line): each transaction takes the write lock first
and goes on from the last entry it finds, so the sequence is contiguous and the clock never repeats.

The clock is a hybrid logical one. Its physical half is the true time where an acknowledgement gave it during this boot,
and the wall clock otherwise; entries of the site's other gateways that are known here are earlier than whatever is
appended next. What a device delivers late gets the next number and an earlier clock reading: one between those of the
entries that were recorded before and after it happened (docs/adr/0019-late-at-the-device-hop.md).

Invariant: an entry is appended, never updated. Invariant: a device event id is in the ledger at most once. Invariant:
clock readings rise with the numbers, except of entries with `late_ms`, which are nobody's predecessors.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from edge_agent.errors import LedgerForeign
from edge_agent.ledger import database
from edge_agent.ledger.clock import Clock, new_epoch
from edge_agent.ledger.database import Connection, Progress
from edge_agent.ledger.derivation import OWN, Derivation
from edge_agent.ledger.drafts import Arrival, Draft, ReadingDraft, Stamp
from edge_agent.ledger.sql import statement
from wire_protocol import clock as hlc_clock
from wire_protocol import frames, names
from wire_protocol.entries import LedgerEntry
from wire_protocol.times import AGE_MS_MAX, AHEAD_MS_MAX, ON_TIME_MS, TimeDoubt
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

        Raises:
            OutOfDomain: a cell's stock would be beyond what stock may be; nothing is appended.
        """
        self._note_boot()
        tail = self.tail()
        observed = self._observed()
        order = _Order(
            self,
            tail.seq,
            latest=max(tail.hlc, observed),
            own=tail.hlc,
            observed_ms=hlc_clock.wall_ms(observed),
            recorded_ms=self._recorded_ms(tail.seq),
        )
        doubted = 0
        seqs: list[int | None] = []
        added: list[tuple[Tail, str, LedgerEntry]] = []
        for draft in drafts:
            seq = tail.seq + 1
            if draft.device is not None and draft.event is not None:
                key = (draft.device, draft.event, seq)
                if self.connection.execute(statement("insert_seen"), key).rowcount == 0:
                    seqs.append(None)
                    continue
            stamp = order.stamp(draft.arrival)
            entry = draft.entry(stamp)
            body = entry.body()
            tail = Tail(seq, stamp.hlc, chain(tail.digest, body))
            doubted += stamp.doubt is not None
            added.append((tail, body, entry))
            seqs.append(seq)
        self.connection.executemany(
            statement("insert_entry"), [(at.seq, at.hlc, body, at.digest) for at, body, _ in added]
        )
        if order.late:
            self.connection.execute(statement("note_latest"), (order.own,))
            for at, _, entry in added:
                if entry.late_ms is not None:
                    self.connection.execute(statement("insert_late"), {"seq": at.seq})
        if doubted:
            self.connection.execute(statement("count_up"), ("device_times_doubted", doubted))
        Derivation(self.connection, bounded=True).apply((OWN, at.seq, entry) for at, _, entry in added)
        return seqs

    def latest(self) -> int:
        """The latest clock reading of the own log; what comes late may have been appended after it."""
        noted: int = self.connection.execute(statement("noted_latest")).fetchone()[0]
        return max(self.tail().hlc, noted)

    def _observed(self) -> int:
        """The latest clock reading among the entries of other gateways, unless it is absurdly far ahead."""
        bound = hlc_clock.pack(self.now_ms() + AHEAD_MS_MAX)
        observed: int = self.connection.execute(statement("observed"), (bound,)).fetchone()[0]
        return observed

    def _recorded_ms(self, seq: int) -> int:
        """When an entry was recorded, by the monotonic clock of this boot; 0 when that was before it, or never."""
        row = self.connection.execute(statement("recorded"), (seq,)).fetchone()
        return row[1] if row is not None and row[0] == self.clock.boot else 0

    def append_readings(self, drafts: Sequence[ReadingDraft]) -> list[bool]:
        """Append sensor readings, inside a transaction; False for one the ring already has."""
        self._note_boot()
        row = self.connection.execute(statement("reading_tail")).fetchone()
        last, taken = (row[1] if row else 0), []
        for draft in drafts:
            mono_ms = self.clock.mono_ms()
            late_ms, doubt = self.lateness(draft.arrival, mono_ms)
            hlc = hlc_clock.tick(0 if late_ms else last, max(0, self.now_ms() - late_ms))
            stamp = Stamp(hlc, self.clock.boot, mono_ms, late_ms or None, doubt)
            body = draft.entry(stamp).body()
            added = self.connection.execute(
                statement("insert_reading"), (hlc, draft.device, draft.event, body)
            ).rowcount
            last = hlc if added and not late_ms else last
            taken.append(bool(added))
        return taken

    def lateness(self, arrival: Arrival | None, mono_ms: int) -> tuple[int, TimeDoubt | None]:
        """How long ago a device's event happened, 0 for just now: its age at its arrival, and how long it waited here.

        It may have waited for the disk, or as a dead letter through a reboot.
        """
        if arrival is None:
            return 0, None
        at, late_ms, doubt = arrival
        if at.boot == self.clock.boot:
            waited_ms = mono_ms - at.mono_ms
        else:
            row = self.connection.execute(statement("boot_zero"), (at.boot,)).fetchone()
            waited_ms = self.now_ms() - (at.wall_ms if row is None or row[0] is None else row[0] + at.mono_ms)
        if waited_ms > 0:
            late_ms += waited_ms
        if late_ms <= ON_TIME_MS:
            return 0, doubt
        return (late_ms, doubt) if late_ms <= AGE_MS_MAX else (0, TimeDoubt.TOO_OLD)

    def _note_boot(self) -> None:
        self.connection.execute(statement("insert_boot"), (self.clock.boot, self.clock.now_ms()))


@dataclass(slots=True)
class _Order:
    """Where the entries of one transaction go in the order of the site's entries.

    What waited in the writer's queue is recorded as of its arrival, unless something was recorded since: then it is
    recorded after that, and late if that is more than `ON_TIME_MS` after it happened.

    `latest` is the latest clock reading known here, `own` that of the own log; `observed_ms` is the latest time at
    which another gateway recorded something that is known here, `recorded_ms` the time of the last entry here by this
    boot's monotonic clock; `end` is the last number before this transaction.
    """

    ledger: Ledger
    end: int
    latest: int
    own: int
    observed_ms: int
    recorded_ms: int
    late: bool = False
    _on_time: list[tuple[int, int]] = field(default_factory=list)  # of this transaction: recorded when, clock reading
    _zeros: dict[str, int] | None = None

    def stamp(self, arrival: Arrival | None) -> Stamp:
        """The clock reading of the next entry."""
        ledger = self.ledger
        boot, now_ms, mono_ms = ledger.clock.boot, ledger.now_ms(), ledger.clock.mono_ms()
        late_ms, doubt = 0, None
        if arrival is not None:
            waited_ms = mono_ms - max(arrival.at.mono_ms, self.recorded_ms) if arrival.at.boot == boot else 0
            if waited_ms > 0 and now_ms - waited_ms >= self.observed_ms:
                now_ms, mono_ms = max(0, now_ms - waited_ms), mono_ms - waited_ms
            late_ms, doubt = ledger.lateness(arrival, mono_ms)
        self.recorded_ms = mono_ms
        if late_ms:
            self.late, hlc = True, self._place(max(0, now_ms - late_ms), mono_ms - late_ms)
            self.latest, self.own = max(self.latest, hlc), max(self.own, hlc)
            return Stamp(hlc, boot, mono_ms, late_ms, doubt)
        hlc = self.latest = self.own = hlc_clock.tick(self.latest, now_ms)
        self._on_time.append((mono_ms, hlc))
        return Stamp(hlc, boot, mono_ms, None, doubt)

    def _place(self, at_ms: int, mono_ms: int) -> int:
        """The reading of a moment that is past: not before what was recorded by then, and before what was after it.

        The wall clock may have been set, or the true time have come, since: the neighbours' readings decide, and the
        true time only between them. Otherwise time is counted from a neighbour of this boot, so that what comes late
        is in order among itself. An equal reading is later by its number.
        """
        number = bisect_right(self._on_time, (mono_ms, hlc_clock.HLC_MAX))
        floor, limit, near = self._neighbours(at_ms, mono_ms) if number == 0 else (0, None, None)
        if number:
            recorded_ms, floor = self._on_time[number - 1]
            near = (floor, recorded_ms)
        if limit is None:
            limit = self._on_time[number][1] - 1 if number < len(self._on_time) else hlc_clock.HLC_MAX
        reading = hlc_clock.pack(at_ms)
        if near is not None and (self.ledger.zero_ms is None or not floor <= reading <= limit):
            reading = hlc_clock.pack(max(0, hlc_clock.wall_ms(near[0]) + mono_ms - near[1]))
        return max(min(reading, limit), floor)

    def _neighbours(self, at_ms: int, mono_ms: int) -> tuple[int, int | None, tuple[int, int] | None]:
        """What was recorded around a moment, before this transaction.

        Returns:
            The last clock reading before it and the last one that is before the next entry's, None without one; and of
            an entry of this boot near it, the clock reading with the moment by the monotonic clock.
        """
        seq = self._first_after(at_ms, mono_ms)
        connection = self.ledger.connection
        before = connection.execute(statement("on_time_before"), {"seq": seq}).fetchone()
        after = connection.execute(statement("on_time_from"), {"seq": seq}).fetchone()
        near = {"boot": self.ledger.clock.boot, "before": before[1] if before else 0, "seq": seq}
        known = connection.execute(statement("reading_near"), near).fetchone()
        return before[0] if before else 0, after[0] - 1 if after else None, known

    def _first_after(self, at_ms: int, mono_ms: int) -> int:
        """The first entry that was recorded after a moment: backwards in growing steps, then by halves."""
        high, step = self.end + 1, 1
        low = high - step
        while low > 0 and self._is_after(low, at_ms, mono_ms):
            high, step = low, step * 2
            low = max(0, high - step)
        while high - low > 1:
            middle = (low + high) // 2
            if self._is_after(middle, at_ms, mono_ms):
                high = middle
            else:
                low = middle
        return high

    def _is_after(self, seq: int, at_ms: int, mono_ms: int) -> bool:
        """Whether an entry was recorded after a moment: by this boot's monotonic clock, or by time as it is known."""
        boot, recorded_mono_ms, recorded_ms = self.ledger.connection.execute(statement("recorded"), (seq,)).fetchone()
        if boot == self.ledger.clock.boot:
            return bool(recorded_mono_ms > mono_ms)
        if self._zeros is None:
            self._zeros = dict(self.ledger.connection.execute(statement("boot_zeros")).fetchall())
        zero_ms = self._zeros.get(boot)
        return bool((recorded_ms if zero_ms is None else zero_ms + recorded_mono_ms) > at_ms)


def chain(previous: bytes, body: str) -> bytes:
    """The digest of an entry: BLAKE2b-128 over the digest before it and its body."""
    return hashlib.blake2b(previous + body.encode(), digest_size=16).digest()

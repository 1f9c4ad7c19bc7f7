"""The site's other logs: frames that the cloud passes down become entries of this ledger.

They arrive as they were sealed, so each log's chain is checked by the same `Receiver` as in the cloud. Offline, every
gateway works on what it knows; after contact all have the same set of entries, and so the same stock.

Invariant: the writing methods run inside a transaction of the ledger's writer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from edge_agent.ledger import stock_digest
from edge_agent.ledger.database import Connection
from edge_agent.ledger.derivation import Derivation, note_events, rebuild
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from wire_protocol import clock, entries
from wire_protocol.entries import Count, LedgerEntry, Movement
from wire_protocol.frames import Frame
from wire_protocol.replication import NO_CURSOR, Cursor, Receiver, Verdict
from wire_protocol.site_messages import SITE_LOGS_MAX, LogCursor, SiteFrame
from wire_protocol.times import AHEAD_MS_MAX, true_time

BOOKED: Final = 0
STAGED: Final = 1


class LogRow(NamedTuple):
    """One log as the ledger has it."""

    log: int
    cursor: Cursor
    hlc: int

    @property
    def unlike(self) -> bool:
        """Whether the cloud is known to have another history of it (`mark_diverged`)."""
        return self.cursor.frame > 0 and not self.cursor.digest


def known_logs(connection: Connection) -> list[LogCursor]:
    """How far this ledger has every log but its own."""
    rows = connection.execute(statement("known_logs"))
    return [LogCursor(gateway=gateway, epoch=epoch, frame=frame, seq=seq) for gateway, epoch, frame, seq in rows]


def diverged_from_cloud(connection: Connection, heads: Sequence[LogCursor]) -> list[int]:
    """The logs of other gateways of which the ledger has more than the cloud, or something else: it fell back.

    Usually their gateways send again what the cloud has lost. One that was restored meanwhile does so in a new epoch.
    """
    there = {(head.gateway, head.epoch): head for head in heads}
    unlike = []
    for log, gateway, epoch, frame, digest in connection.execute(statement("other_logs")):
        head = there.get((gateway, epoch))
        if head is None:
            differs = len(heads) < SITE_LOGS_MAX
        else:
            differs = head.frame < frame or (head.frame == frame and head.digest not in {digest, None})
        if differs:
            unlike.append(log)
    return unlike


def log_row(connection: Connection, gateway: str, epoch: str, *, staged: bool = False) -> LogRow | None:
    """A log other than the own; None when nothing of it is here."""
    row = connection.execute(statement("log"), (gateway, epoch, int(staged))).fetchone()
    return None if row is None else LogRow(row[0], Cursor(*row[1:4]), row[4])


@dataclass(frozen=True, slots=True)
class SiteLogWriter:
    """The writing side of the site's other logs."""

    ledger: Ledger

    def receive(self, message: SiteFrame, frame: Frame) -> Verdict:
        """Take a frame that the cloud has passed down.

        A frame of this ledger's own log is taken only while it is being fetched to open a new epoch.
        """
        header, connection = frame.header, self.ledger.connection
        staged = (message.gateway, header.epoch) == (self.ledger.gateway, self.ledger.epoch)
        row = log_row(connection, message.gateway, header.epoch, staged=staged)
        if (staged and row is None) or header.stream != "ledger":
            return Verdict.DUPLICATE
        if row is not None and row.unlike:
            return Verdict.DUPLICATE  # `recovery` gives it up, and then it is fetched from its start
        receiver = Receiver(message.gateway, "ledger", header.epoch, row.cursor if row else NO_CURSOR)
        verdict = receiver.offer(header, frame.digest)
        if verdict is Verdict.MERGE:
            log = row.log if row else self.add_log(message.gateway, header.epoch)
            latest = self._store(log, message, frame, booked=not staged)
            connection.execute(statement("advance_log"), (*receiver.cursor, latest, log))
            stock_digest.note_sealed(connection)
        elif verdict is Verdict.FORK and not staged and row is not None:
            # The cloud has another history of that log than it had: it fell back and the log was restored meanwhile.
            if message.gateway == self.ledger.gateway:
                # What only this ledger has of it must not be lost: `recovery` brings it again.
                connection.execute(statement("mark_diverged"), (row.log,))
            else:
                self.forget(row.log)
        return verdict

    def add_log(self, gateway: str, epoch: str, *, staged: bool = False, cursor: Cursor = NO_CURSOR) -> int:
        """A log that is new here; returns its number."""
        added = self.ledger.connection.execute(statement("insert_log"), (gateway, epoch, int(staged), *cursor))
        assert added.lastrowid is not None  # noqa: S101 - sqlite3 promises it after an INSERT
        return added.lastrowid

    def forget(self, *logs: int) -> None:
        """Drop logs with everything derived from them; they are fetched again from the cloud."""
        connection = self.ledger.connection
        for log in logs:
            connection.execute(statement("delete_site_entries"), (log, 0))
            connection.execute(statement("delete_log"), (log,))
        rebuild(connection)

    def _store(self, log: int, message: SiteFrame, frame: Frame, *, booked: bool) -> int:
        """Store the entries of a frame; returns the latest clock reading that is worth following."""
        counting, boots = list(_counting(message, frame)), frame.header.boots
        rows = [
            (log, seq, entry.hlc, true_time(entry, boots, message.received_ms).at_ms, entry.body())
            for seq, entry in counting
        ]
        self.ledger.connection.executemany(statement("insert_site_entry"), rows)
        if booked:
            Derivation(self.ledger.connection).apply((log, seq, entry) for seq, entry in counting)
            if message.gateway == self.ledger.gateway:
                note_events(self.ledger.connection, [(log, seq, entry) for seq, entry in counting])
        # Another gateway's clock is followed so far and no further; one's own past is always earlier.
        own = message.gateway == self.ledger.gateway
        bound = clock.HLC_MAX if own else clock.pack(self.ledger.now_ms() + AHEAD_MS_MAX)
        return max((entry.hlc for _, entry in counting if entry.hlc <= bound), default=0)


def _counting(message: SiteFrame, frame: Frame) -> Iterable[tuple[int, LedgerEntry]]:
    """The entries of a frame that count, with their numbers: those the cloud took."""
    out = set(message.rejected)
    if frame.problem or len(out) == frame.header.count:
        return
    valid, _ = entries.validate(frame.rows)
    for seq, entry in enumerate(valid, frame.header.first_seq):
        if seq not in out and isinstance(entry, Movement | Count):
            yield seq, entry

"""Opening a new epoch: what a ledger does whose history is not the cloud's.

A backup was restored, a disk was cloned, or the gateway was replaced: the cloud refuses the ledger's frames. Nothing is
counted twice by that, and nothing is lost: the ledger fetches what the cloud has of this gateway, keeps what both have
as an older log, and carries on with the rest, its own entries that the cloud does not have, in a new epoch.

1. `stage`: the own log is marked to be fetched, from the last frame that both are known to share.
2. The frames arrive through `SiteLogWriter` and are kept aside, not booked.
3. `open_epoch`, when everything is there: one transaction, after which the ledger has a new epoch and a stock derived
again.

Invariant: every entry this ledger ever appended is afterwards in exactly one log, unless another log of this gateway
has its device event, or a technician's very entry, already.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from operator import itemgetter
from typing import Final

from edge_agent.ledger import database, outbox, streams
from edge_agent.ledger.clock import new_epoch
from edge_agent.ledger.database import Connection
from edge_agent.ledger.derivation import rebuild
from edge_agent.ledger.ledger import EMPTY, Ledger, Tail, chain
from edge_agent.ledger.site_logs import SiteLogWriter, log_row
from edge_agent.ledger.sql import statement
from wire_protocol import clock as hlc_clock
from wire_protocol import frames
from wire_protocol.entries import ENTRY
from wire_protocol.replication import NO_CURSOR, Cursor
from wire_protocol.site_messages import LogCursor
from wire_protocol.topics import STREAMS

NOTHING_MORE: Final = (1 << 62) - 1  # greater than any frame's number
STAGED_FROM: Final = "staged_from"  # the last entry before those that are fetched


class Staging(Enum):
    """From where the own log is to be fetched."""

    FROM_LAST = auto()
    """From the last acknowledged frame."""
    FROM_START = auto()


@dataclass(frozen=True, slots=True)
class Opened:
    """A new epoch: how many entries were carried over into it, and how many the cloud had under another number."""

    epoch: str
    carried: int
    known: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """The steps; each runs inside a transaction of the ledger's writer."""

    ledger: Ledger

    def stage(self, *, from_start: bool = False) -> None:
        """Have the own log fetched: from the last acknowledged frame, or from its start if even that is not shared."""
        ledger = self.ledger
        at = streams.position(ledger.connection, "ledger")
        digest = outbox.digest(ledger.connection, "ledger", at.acked_frame)
        shared = not from_start and digest is not None
        cursor = Cursor(at.acked_frame, at.acked_seq, digest) if shared and digest else NO_CURSOR
        staged = log_row(ledger.connection, ledger.gateway, ledger.epoch, staged=True)
        if staged is not None:
            ledger.connection.execute(statement("delete_site_entries"), (staged.log, 0))
            ledger.connection.execute(statement("delete_log"), (staged.log,))
        SiteLogWriter(ledger).add_log(ledger.gateway, ledger.epoch, staged=True, cursor=cursor)
        ledger.connection.execute(statement("set_meta"), (STAGED_FROM, str(cursor.seq)))

    def open_epoch(self, heads: Sequence[LogCursor]) -> Opened:
        """Carry on in a new epoch; `heads` is where the cloud has every log of the site."""
        ledger, connection = self.ledger, self.ledger.connection
        staged = log_row(connection, ledger.gateway, ledger.epoch, staged=True)
        assert staged is not None, "stage comes first"  # noqa: S101 - a mistake of the programmer
        shared_seq, rest = self._split(staged.log)
        connection.execute(statement("copy_entries"), {"log": staged.log, "seq": shared_seq})
        older = self._beyond(heads)
        known = {_identity(body) for (body,) in connection.execute(statement("own_older_entries"))}
        recorded = sorted((each for log in (rest, *older) for each in _recorded(log)), key=itemgetter(0))
        fresh = {_identity(body): body for _, body in recorded}
        carried = [body for identity, body in fresh.items() if identity not in known]
        latest = ledger.latest()
        self._restart(epoch := new_epoch(ledger.clock))
        connection.execute(statement("unstage"), (latest, staged.log))
        if staged.cursor.frame == 0:
            # The cloud has nothing of it: there is no older log to know of.
            connection.execute(statement("delete_site_entries"), (staged.log, 0))
            connection.execute(statement("delete_log"), (staged.log,))
        self._append(carried)
        connection.execute(statement("set_meta"), (outbox.CARRIED, str(len(carried))))
        rebuild(connection)
        return Opened(epoch, len(carried), len(recorded) - len(carried))

    def _split(self, staged: int) -> tuple[int, list[str]]:
        """The last own entry that the cloud has under the same number, and the bodies of those it has not."""
        connection = self.ledger.connection
        begin = int(database.meta(connection)[STAGED_FROM])
        theirs: Mapping[int, str] = dict(connection.execute(statement("staged_entries"), (staged, begin)))
        rejected = {seq for seq, *_ in connection.execute(statement("rejected_entries"))}
        rest: list[str] = []
        for seq, body in connection.execute(statement("entries_after"), (begin,)):
            if seq not in rejected and (rest or theirs.get(seq) != body):
                rest.append(body)
        return begin, rest

    def _beyond(self, heads: Sequence[LogCursor]) -> list[list[str]]:
        """Entries by log, of older own logs that the cloud has less of, or otherwise: it fell back beyond all frames.

        Such a log is given up as a whole, because the gateway cannot tell which of it the cloud still has. The next
        epoch is then refused for not knowing the log; it is fetched, and what the cloud has of it is not carried over
        again.
        """
        connection = self.ledger.connection
        logs: list[list[str]] = []
        for log in _unlike(connection, heads):
            logs.append(bodies := [])
            for body, at_ms in connection.execute(statement("site_entries_after"), (log, 0)).fetchall():
                bodies.append(body)
                self._keep_time(body, at_ms)
            connection.execute(statement("delete_site_entries"), (log, 0))
            connection.execute(statement("delete_log"), (log,))
        return logs

    def _keep_time(self, body: str, at_ms: int) -> None:
        """The boot may be another machine's: what its frame said of the true time must be said again in ours."""
        entry = json.loads(body)
        zero = {"boot": entry["boot"], "zero_ms": at_ms - entry["mono_ms"] + entry.get("late_ms", 0)}
        self.ledger.connection.execute(statement("note_boot_zero"), zero)

    def _restart(self, epoch: str) -> None:
        """The own log begins again, in a new epoch."""
        ledger, connection = self.ledger, self.ledger.connection
        readings = streams.position(connection, "readings")
        waiting = {"source_id": readings.source_id, "waiting": readings.sealed_seq - readings.acked_seq}
        row = connection.execute(statement("reading_not_acked"), waiting).fetchone()
        sources = {"ledger": 0, "readings": row[0] if row else 0}
        for name in ("entries", "frames", "verdicts", "bounded"):
            connection.execute(statement(f"delete_{name}"))
        connection.execute(statement("set_own_epoch"), (epoch,))
        connection.execute(statement("set_meta"), ("epoch", epoch))
        for stream in STREAMS:
            genesis = frames.genesis(ledger.gateway, epoch, stream)
            connection.execute(statement("restart_stream"), (genesis, sources[stream], stream))

    def _append(self, bodies: Sequence[str]) -> None:
        """Entries as they are, under new numbers; what happened and when stays what it was."""
        tail, rows = EMPTY, []
        for body in bodies:
            tail = Tail(tail.seq + 1, ENTRY.validate_json(body).hlc, chain(tail.digest, body))
            rows.append((tail.seq, tail.hlc, body, tail.digest))
        self.ledger.connection.executemany(statement("insert_entry"), rows)


def _identity(body: str) -> tuple[str, str] | str:
    """What makes an entry the same in two logs: the device event that caused it; all of a technician's own."""
    entry = json.loads(body)
    return (entry["device"], entry["event"]) if entry.get("device") and entry.get("event") else body


def _recorded(bodies: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The entries of one log, each with the clock reading at which it was recorded.

    Numbers are in the order of recording, and the ledger finds the place of what comes late by it. What came late has
    an earlier reading of its own: it was recorded right after the entry before it.
    """
    latest = 0
    for body in bodies:
        entry = json.loads(body)
        if (late_ms := entry.get("late_ms")) is None:
            latest = max(latest, entry["hlc"])
        yield latest or entry["hlc"] + ((late_ms or 0) << hlc_clock.COUNTER_BITS), body


def next_step(connection: Connection, heads: Sequence[LogCursor]) -> Staging | None:
    """What must be staged before a new epoch can be opened, once all that was asked for is here; None for nothing."""
    own = tuple(connection.execute(statement("own_log")).fetchone())
    staged = log_row(connection, *own, staged=True)
    if staged is None:
        return Staging.FROM_LAST
    there = next((head.frame for head in heads if (head.gateway, head.epoch) == own), 0)
    return Staging.FROM_START if staged.cursor.frame > there else None


def fetched(connection: Connection, heads: Sequence[LogCursor]) -> bool:
    """Whether every log is here as far as the cloud has it, the own one included while it is staged."""
    have = {(log.gateway, log.epoch): log.frame for log in fetching(connection)}
    own = tuple(connection.execute(statement("own_log")).fetchone())
    wanted = {(head.gateway, head.epoch): head.frame for head in heads}
    return all(have.get(log, 0) >= frame for log, frame in wanted.items() if log in have or log != own)


def fetching(connection: Connection) -> list[LogCursor]:
    """How far this ledger has every log, the staged one in place of its own.

    Of an older own log that the cloud has otherwise nothing more is wanted: no frame of the cloud's follows on ours.
    """
    return [
        LogCursor(gateway=gateway, epoch=epoch, frame=NOTHING_MORE if unlike else frame, seq=seq)
        for gateway, epoch, frame, seq, unlike in connection.execute(statement("known_with_staged"))
    ]


def lost_by_cloud(connection: Connection, heads: Sequence[LogCursor]) -> bool:
    """Whether the cloud has less of this gateway's older logs than the ledger, or otherwise: it has fallen back."""
    return bool(_unlike(connection, heads))


def _unlike(connection: Connection, heads: Sequence[LogCursor]) -> list[int]:
    """The older own logs of which the cloud has not at least what is here."""
    there = {(head.gateway, head.epoch): head for head in heads}
    gateway = connection.execute(statement("own_log")).fetchone()[0]
    unlike = []
    for log, epoch, frame, digest in connection.execute(statement("own_older_logs")):
        head = there.get((gateway, epoch))
        same = head is not None and head.frame >= frame and (head.frame > frame or head.digest in {digest, None})
        if not digest or not same:
            unlike.append(log)
    return unlike

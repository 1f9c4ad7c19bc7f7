"""The outbox: entries sealed into frames, frames kept until and beyond their acknowledgement.

Invariant: a frame is sealed once and sent byte for byte ever after. Invariant: frame N+1 names the digest of frame N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from edge_agent.errors import LedgerCorrupt
from edge_agent.ledger import database, stock_digest
from edge_agent.ledger.database import Connection
from edge_agent.ledger.derivation import OWN, Derivation, rebuild
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from edge_agent.ledger.streams import StreamPosition, position, waiting
from wire_protocol import frames
from wire_protocol.entries import ENTRY, Count, Movement, Reading
from wire_protocol.errors import InvalidFrame
from wire_protocol.frames import FrameHeader, LogHead
from wire_protocol.messages import ClampedTime, Rejected
from wire_protocol.topics import Stream

CARRIED: Final = "carried"  # how many entries the epoch began with
_SOURCES: Final[dict[Stream, str]] = {"ledger": "entries_to_seal", "readings": "readings_to_seal"}


class Sealed(NamedTuple):
    """A frame that was sealed, and how many entries still wait."""

    frame: int
    entries: int
    bytes: int
    waiting: int


def time_known(connection: Connection, boot: str) -> bool:
    """Whether an acknowledgement gave the time in this boot, so that a frame that is sealed now says when it was."""
    row = connection.execute(statement("boot_zero"), (boot,)).fetchone()
    return row is not None and row[0] is not None


def body(connection: Connection, stream: Stream, frame: int) -> bytes | None:
    """A sealed frame as it was first sent; None when it is no longer kept."""
    row = connection.execute(statement("frame_body"), (stream, frame)).fetchone()
    return row[0] if row else None


def digest(connection: Connection, stream: Stream, frame: int) -> str | None:
    """The digest of a sealed frame; None when it is no longer kept."""
    row = connection.execute(statement("frame_digest"), (stream, frame)).fetchone()
    return row[0] if row else None


@dataclass(frozen=True, slots=True)
class Outbox:
    """The writing side of the outbox; every method runs inside a transaction of the ledger's writer."""

    ledger: Ledger

    def seal(
        self,
        stream: Stream,
        entries_max: int,
        *,
        contact_mono_ms: int | None,
        bytes_max: int = frames.FRAME_BYTES_MAX,
    ) -> Sealed | None:
        """Seal the next waiting entries.

        Args:
            stream: which stream.
            entries_max: entries in the frame at most.
            contact_mono_ms: when this contact began, by the monotonic clock: what was recorded before is marked as
                replay. The wall clock may have been set in between.
            bytes_max: of the frame, where that can be: a broker may take less than the protocol allows.

        Returns:
            None when nothing waits.
        """
        connection = self.ledger.connection
        at = position(connection, stream)
        rows = connection.execute(statement(_SOURCES[stream]), (at.source_id, entries_max)).fetchall()
        if not rows:
            return None
        entries = [ENTRY.validate_json(text) for _, text in rows]
        # A frame is all replay or all live, so that a dashboard never takes last week's pick for one that happens now.
        boot, replay = self.ledger.clock.boot, []
        if contact_mono_ms is not None:
            replay = [entry for entry in entries if entry.boot != boot or entry.mono_ms < contact_mono_ms]
        header, encoded = self._encode(stream, at, replay or entries, replay=bool(replay), bytes_max=bytes_max)
        now_ms, link, rows = self.ledger.clock.now_ms(), frames.digest(encoded), rows[: header.count]
        connection.execute(
            statement("insert_frame"),
            (stream, header.frame, header.first_seq, header.count, link, now_ms, encoded),
        )
        connection.execute(statement("advance_sealed"), (header.frame, header.last_seq, link, rows[-1][0], stream))
        if stream == "ledger":
            stock_digest.note_sealed(connection)
        return Sealed(header.frame, header.count, len(encoded), waiting(connection, stream, rows[-1][0]))

    def _encode(
        self,
        stream: Stream,
        at: StreamPosition,
        entries: list[Movement | Count | Reading],
        *,
        replay: bool,
        bytes_max: int,
    ) -> tuple[FrameHeader, bytes]:
        """Encode as many of the entries as fit the frame's size bound."""
        zeros = dict(self.ledger.connection.execute(statement("boot_zeros")))
        after = self._older_logs() if stream == "ledger" and at.sealed_frame == 0 else {}
        carried = int(database.meta(self.ledger.connection).get(CARRIED, "0")) if stream == "ledger" else 0
        entries = _of_few_boots(entries)
        while True:
            boots = {entry.boot for entry in entries}
            header = FrameHeader(
                stream=stream,
                epoch=self.ledger.epoch,
                frame=at.sealed_frame + 1,
                first_seq=at.sealed_seq + 1,
                count=len(entries),
                prev=at.sealed_digest,
                boots={boot: zeros[boot] for boot in sorted(boots) if boot in zeros},
                replay=replay,
                after=after,
                carried=at.sealed_seq < carried,
            )
            try:
                encoded = frames.seal(header, entries)
            except InvalidFrame:
                if len(entries) == 1:
                    raise
            else:
                if len(encoded) <= bytes_max or len(entries) == 1:
                    return header, encoded
            entries = entries[: len(entries) // 2]

    def _older_logs(self) -> dict[str, LogHead]:
        """What the first frame of an epoch says: how far this ledger knows the gateway's older logs.

        What it took before it knew them may be in them already; then it says nothing, is refused, and begins again.
        """
        known = self.ledger.connection.execute(statement("older_logs"), (frames.EPOCHS_MAX,))
        return {epoch: LogHead(frame=frame, digest=digest) for epoch, frame, digest in known}

    def acked(self, stream: Stream, frame: int) -> None:
        """The cloud has everything up to this frame."""
        connection, now_ms = self.ledger.connection, self.ledger.clock.now_ms()
        row = connection.execute(statement("frame_end"), (stream, frame)).fetchone()
        if row is None:
            raise LedgerCorrupt(f"The cloud acknowledged frame {frame} of {stream}, which is not kept here.")
        connection.execute(statement("advance_acked"), (frame, row[0], now_ms, stream))
        connection.execute(statement("mark_frames_acked"), (now_ms, stream, frame))

    def verdicts(self, stream: Stream, rejected: Sequence[Rejected]) -> int:
        """The cloud does not count these entries: neither does the ledger, and the technician is shown why.

        It tells them again with each contact; returns how many were new.
        """
        now_ms = self.ledger.clock.now_ms()
        connection = self.ledger.connection
        known = {seq for (seq,) in connection.execute(statement("verdicts_known"), (stream,))}
        rejected = [verdict for verdict in rejected if verdict.seq not in known]
        if not rejected:
            return 0
        connection.executemany(
            statement("insert_verdict"), [(stream, verdict.seq, verdict.reason, now_ms) for verdict in rejected]
        )
        if stream == "ledger":
            derivation = Derivation(connection)
            for verdict in rejected:
                derivation.withdraw(OWN, verdict.seq)
            stock_digest.note_sealed(connection)
        return len(rejected)

    def bounded(self, stream: Stream, clamped: Sequence[ClampedTime]) -> None:
        """Keep the times that the cloud gave to entries whose own it did not believe."""
        self.ledger.connection.executemany(
            statement("insert_bounded"), [(stream, entry.seq, entry.at_ms) for entry in clamped]
        )

    def stepped_back(self, stream: Stream, frame: int) -> None:
        """The cloud fell back to this frame; what comes after it must be kept until it is acknowledged again."""
        connection = self.ledger.connection
        row = connection.execute(statement("frame_end"), (stream, frame)).fetchone()
        connection.execute(
            statement("advance_acked"), (frame, row[0] if row else 0, self.ledger.clock.now_ms(), stream)
        )
        connection.execute(statement("unmark_frames_acked"), (stream, frame))
        # What it sends again is judged again, and perhaps otherwise: another log may have been merged first this time.
        judged = connection.execute(statement("delete_verdicts_after"), (stream, row[0] if row else 0)).rowcount
        if judged and stream == "ledger":
            rebuild(connection)

    def forked(self, stream: Stream, reason: str) -> None:
        """The cloud has another history; the technician must see it."""
        self.ledger.connection.execute(statement("set_fork"), (reason, stream))

    def learn_time(self, zero_ms: int) -> None:
        """An acknowledgement gave the cloud's time at which this boot's monotonic clock was zero.

        It holds for what is recorded from now on, and in the frames sealed from now on for what was recorded before.
        """
        ledger = self.ledger
        ledger.connection.execute(statement("insert_boot"), (ledger.clock.boot, ledger.clock.now_ms()))
        ledger.connection.execute(statement("set_boot_zero"), (zero_ms, ledger.clock.boot))
        ledger.zero_ms = zero_ms

    def trim(self, *, keep_s: int, keep_bytes_max: int) -> int:
        """Forget acknowledged frames that are older than the retention or beyond its budget; returns how many."""
        connection = self.ledger.connection
        before_ms = self.ledger.clock.now_ms() - keep_s * 1_000
        gone = connection.execute(statement("trim_frames_by_age"), {"before_ms": before_ms}).rowcount
        excess = connection.execute(statement("acked_frame_bytes")).fetchone()[0] - keep_bytes_max
        if excess <= 0:
            return gone
        for stream, frame, size in connection.execute(statement("oldest_acked_frames")).fetchall():
            if excess <= 0:
                break
            connection.execute(statement("delete_frame"), (stream, frame))
            excess -= size
            gone += 1
        return gone


def _of_few_boots(entries: list[Movement | Count | Reading]) -> list[Movement | Count | Reading]:
    """The first entries, of at most as many boots as a frame's header has room for."""
    boots: set[str] = set()
    for number, entry in enumerate(entries):
        boots.add(entry.boot)
        if len(boots) > frames.BOOTS_MAX:
            return entries[:number]
    return entries

"""Replication of one log of frames: a sender at the edge, a receiver in the cloud and at the site's other gateways.

Both are sans-I/O state machines: events in, effects out. The same code runs in production, in property tests and in
the simulator (https://sans-io.readthedocs.io).

The protocol is go-back-N with cumulative acknowledgements and a receiver-set window. After a timeout the sender
probes with the first unacknowledged frame alone: if only acknowledgements were lost, one answer settles the whole
window, and a hundred gateways coming back at once do not send a hundred windows twice.

Invariant: nothing here waits, reads a clock or draws randomness; time in milliseconds and jitter are arguments.
Invariant: the receiver moves its cursor only from frame N to frame N+1 of the same chain.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Final, NamedTuple

from wire_protocol import frames
from wire_protocol.effects import Acked, Effect, Forked, Seal, Send, SteppedBack
from wire_protocol.errors import WireError
from wire_protocol.frames import FrameHeader
from wire_protocol.messages import Ack, ClampedTime, Rejected
from wire_protocol.reasons import ForkCode
from wire_protocol.topics import Stream

# Until the cloud's first acknowledgement gives a window. A fleet that comes back at once with full windows would wait
# in a queue that is longer than its resend timers.
FIRST_WINDOW_FRAMES: Final = 4
REJECTED_PER_ACK_MAX: Final = 250  # with the longest reasons, such an acknowledgement still fits its bound


@dataclass(frozen=True, slots=True)
class SenderLimits:
    """The bounds of a sender; times in milliseconds, sizes in frames or entries."""

    window_frames_max: int = 16
    live_entries_max: int = 100
    drain_entries_max: int = frames.FRAME_ENTRIES_MAX
    seal_delay_ms: int = 50
    resend_delay_ms: int = 2_000
    resend_delay_ms_max: int = 60_000
    ask_age_ms_max: int = 60_000


class Sender:
    """The edge's end of one stream.

    Args:
        stream: which stream.
        epoch: the ledger's epoch; acknowledgements of another are ignored.
        sealed: the last frame sealed, 0 for none.
        acked: the last frame known to be durable in the cloud.
        limits: the bounds.
        jitter: returns a factor to multiply a delay with, typically 0.5 to 1.5.
        digest_of: the digest of a sealed frame, None when it is no longer known.
    """

    def __init__(
        self,
        stream: Stream,
        epoch: str,
        *,
        sealed: int,
        acked: int,
        limits: SenderLimits | None = None,
        jitter: Callable[[], float] = lambda: 1.0,
        digest_of: Callable[[int], str | None] = lambda _: None,
    ) -> None:
        if not 0 <= acked <= sealed:
            raise WireError(f"A sender cannot have {acked} frames acknowledged of {sealed} sealed.")
        self.stream, self.epoch = stream, epoch
        self.sealed_frame, self.acked_frame = sealed, acked
        self.limits = limits or SenderLimits()
        self.forked: str | None = None
        self._jitter, self._digest_of = jitter, digest_of
        self._connected = False
        self._sealing = False
        self._probing = False
        self._window = min(self.limits.window_frames_max, FIRST_WINDOW_FRAMES)
        self._next = acked + 1
        self._waiting = 0
        self._oldest_ms = 0
        self._delay_ms = self.limits.resend_delay_ms
        self._resend_at_ms: int | None = None
        self._rewound: tuple[int, int] | None = None
        self._told_ms = 0

    @property
    def in_flight(self) -> int:
        """How many frames are sent and not acknowledged."""
        return self._next - 1 - self.acked_frame

    def connected(self, now_ms: int) -> list[Effect]:
        """The link is up: send from the first unacknowledged frame, without waiting for the cloud's cursor."""
        self._connected, self._probing, self._told_ms = True, False, 0
        self._window = min(self.limits.window_frames_max, FIRST_WINDOW_FRAMES)
        self._delay_ms = self.limits.resend_delay_ms
        self._rewind(self.acked_frame + 1)
        # The cloud answers the announcement by asking for just these frames; they are on their way already.
        self._rewound = (self.acked_frame + 1, now_ms + self.limits.resend_delay_ms)
        return self._pump(now_ms)

    def disconnected(self) -> None:
        """The link is down: nothing is in flight any more."""
        self._connected, self._resend_at_ms = False, None

    def waiting(self, entries: int, oldest_ms: int, now_ms: int) -> list[Effect]:
        """Tell how many entries are committed and not sealed, and when the oldest of them was committed."""
        self._waiting, self._oldest_ms = entries, oldest_ms
        return self._pump(now_ms)

    def sealed(self, frame: int, waiting: int, now_ms: int) -> list[Effect]:
        """A frame was sealed (the answer to Seal); `waiting` entries are left."""
        if frame != self.sealed_frame + 1:
            raise WireError(f"Frame {frame} was sealed after frame {self.sealed_frame}.")
        self.sealed_frame, self._waiting, self._sealing = frame, waiting, False
        return self._pump(now_ms)

    def nothing_sealed(self) -> list[Effect]:
        """There was nothing to seal after all (the waiting readings were shed meanwhile)."""
        self._waiting, self._sealing = 0, False
        return []

    def receive(self, ack: Ack, now_ms: int) -> list[Effect]:
        """An acknowledgement arrived; late, repeated and reordered ones are harmless."""
        if ack.stream != self.stream or ack.epoch not in {self.epoch, None} or self.forked:
            return []
        if reason := self._fork_reason(ack):
            self.forked = reason
            return [Forked(reason)]
        self._window = min(ack.window, self.limits.window_frames_max)
        effects = self._advance(ack.frame, now_ms) if ack.frame > self.acked_frame else []
        # A cloud that fell back asks for old frames, and so does an acknowledgement that a broker held back for hours;
        # the cloud's own clock tells them apart.
        stale = ack.now_ms < self._told_ms - self.limits.ask_age_ms_max
        self._told_ms = max(self._told_ms, ack.now_ms)
        if ack.want is not None and ack.want == ack.frame + 1 and not stale:
            effects += self._go_back(ack.want, now_ms)
        return effects + self._pump(now_ms)

    def tick(self, now_ms: int) -> list[Effect]:
        """Time has passed: resend when nothing was acknowledged in time, seal what has waited long enough."""
        if self._connected and self._resend_at_ms is not None and now_ms >= self._resend_at_ms:
            self._probing = True
            self._rewind(self.acked_frame + 1)
            self._delay_ms = min(self._delay_ms * 2, self.limits.resend_delay_ms_max)
            self._resend_at_ms = None
        return self._pump(now_ms)

    def next_deadline_ms(self) -> int | None:
        """When to call `tick` again at the latest; None when only an event can change anything."""
        if not self._connected or self.forked:
            return None
        sealing_at = self._oldest_ms + self.limits.seal_delay_ms if self._may_seal() and self._waiting else None
        return min((at for at in (self._resend_at_ms, sealing_at) if at is not None), default=None)

    def _pump(self, now_ms: int) -> list[Effect]:
        """Send and seal as much as the window admits."""
        if not self._connected or self.forked:
            return []
        effects: list[Effect] = []
        while self._next <= self.sealed_frame and self.in_flight < self._admitted():
            effects.append(Send(self._next))
            self._next += 1
        if self._may_seal() and self._due(now_ms):
            self._sealing = True
            backlog = self._waiting > self.limits.live_entries_max
            effects.append(Seal(self.limits.drain_entries_max if backlog else self.limits.live_entries_max))
        if not self._expecting():
            self._resend_at_ms = None
        elif self._resend_at_ms is None:
            self._resend_at_ms = now_ms + round(self._delay_ms * self._jitter())
        return effects

    def _admitted(self) -> int:
        """How many frames may be in flight.

        A closed window still lets one frame through after a timeout: the acknowledgement that opens it may be lost.
        """
        return 1 if self._probing else self._window

    def _expecting(self) -> bool:
        """Whether an acknowledgement is due: of what was sent, or one that opens the window."""
        unsent = self._next <= self.sealed_frame or self._waiting > 0
        return self.in_flight > 0 or (unsent and self.in_flight >= self._admitted())

    def _may_seal(self) -> bool:
        return self._next > self.sealed_frame and not self._sealing and self.in_flight < self._admitted()

    def _due(self, now_ms: int) -> bool:
        if self._waiting >= self.limits.live_entries_max:
            return True
        return self._waiting > 0 and now_ms >= self._oldest_ms + self.limits.seal_delay_ms

    def _advance(self, frame: int, now_ms: int) -> list[Effect]:
        self.acked_frame = frame
        self._next = max(self._next, frame + 1)
        self._probing, self._rewound = False, None
        self._delay_ms = self.limits.resend_delay_ms
        self._resend_at_ms = now_ms + round(self._delay_ms * self._jitter())
        return [Acked(frame)]

    def _go_back(self, want: int, now_ms: int) -> list[Effect]:
        """The receiver has a gap. One rewind per gap and timeout: every frame of a window may report the same gap."""
        if want > self.sealed_frame:
            return []
        if self._rewound is not None and self._rewound[0] == want and now_ms < self._rewound[1]:
            return []
        self._rewound = (want, now_ms + self.limits.resend_delay_ms)
        effects: list[Effect] = []
        if want <= self.acked_frame:
            self.acked_frame = want - 1
            effects.append(SteppedBack(want - 1))
        self._rewind(want)
        return effects

    def _rewind(self, frame: int) -> None:
        self._next = min(self._next, frame)

    def _fork_reason(self, ack: Ack) -> str | None:
        """Why the cloud's history is not this ledger's; None when it may be.

        A clone of this disk hears the same acknowledgements. The one whose frame is named has the cloud's history;
        what is said of a fork is meant for the other.
        """
        if ack.epoch is None:
            return ack.fork
        if ack.frame > self.sealed_frame:
            return ForkCode.LEDGER_BEHIND.says(f"the cloud has frame {ack.frame}, this ledger only {self.sealed_frame}")
        ours = self._digest_of(ack.frame) if ack.digest is not None else None
        if ours is None:
            return ack.fork
        return None if ours == ack.digest else ForkCode.OTHER_FRAME.says(f"the cloud has another frame {ack.frame}")


class Cursor(NamedTuple):
    """How far a log has been received; moves in the transaction that stores its rows."""

    frame: int
    seq: int
    digest: str


NO_CURSOR: Final = Cursor(0, 0, "")


class Verdict(Enum):
    """What to do with a frame."""

    MERGE = "merge"
    DUPLICATE = "duplicate"
    AHEAD = "ahead"
    FORK = "fork"


class Receiver:
    """The receiving end of one log: one stream of one gateway in one epoch, over a cursor that the caller stores.

    Every epoch is a log of its own, so a gateway that was cloned can go on in two: neither can disturb the other. What
    a new epoch must do is know the older ones first: its first frame says in `after` how far.

    Args:
        gateway, stream, epoch: which log.
        cursor: how far it has been received.
        older: where the gateway's other logs of this stream stand, by epoch; empty where that is not to be asked.
    """

    def __init__(
        self, gateway: str, stream: Stream, epoch: str, cursor: Cursor, older: Mapping[str, Cursor] | None = None
    ) -> None:
        self.gateway, self.stream, self.epoch, self.cursor = gateway, stream, epoch, cursor
        self.older = older or {}
        self.gap = False
        self.fork: str | None = None

    def offer(self, header: FrameHeader, digest: str) -> Verdict:
        """Judge a frame; on MERGE the cursor has moved and the caller must store the rows with it."""
        if header.frame > self.cursor.frame + 1:
            self.gap = True
            return Verdict.AHEAD
        if problem := self._fork_reason(header, digest):
            self.fork = problem
            return Verdict.FORK
        if header.frame <= self.cursor.frame:
            return Verdict.DUPLICATE
        self.cursor = Cursor(header.frame, header.last_seq, digest)
        self.gap = False
        return Verdict.MERGE

    def ack(
        self,
        now_ms: int,
        window: int,
        *,
        rejected: Iterable[Rejected] = (),
        bounded: Iterable[ClampedTime] = (),
        ask: bool = False,
    ) -> Ack:
        """The acknowledgement of everything up to the cursor. Send it only after the cursor is committed.

        Args:
            now_ms: the cloud's clock.
            window: how many frames the gateway may have in flight.
            rejected: entries that were quarantined.
            bounded: entries whose time was not believed.
            ask: answer to a gateway that announced itself: also say which frame is wanted next.
        """
        frame, seq, digest = self.cursor
        return Ack(
            stream=self.stream,
            epoch=self.epoch,
            frame=frame,
            seq=seq,
            now_ms=now_ms,
            window=window,
            rejected=tuple(rejected),
            want=frame + 1 if ask or self.gap else None,
            fork=self.fork,
            digest=digest or None,
            bounded=tuple(bounded),
        )

    def acks(
        self,
        now_ms: int,
        window: int,
        *,
        rejected: Iterable[Rejected] = (),
        bounded: Iterable[ClampedTime] = (),
        ask: bool,
    ) -> Iterator[Ack]:
        """As many acknowledgements as it takes to tell everything that was rejected; mostly one."""
        remaining = iter(rejected)
        part = tuple(islice(remaining, REJECTED_PER_ACK_MAX))
        yield self.ack(now_ms, window, rejected=part, bounded=bounded, ask=ask)
        while part := tuple(islice(remaining, REJECTED_PER_ACK_MAX)):
            yield self.ack(now_ms, window, rejected=part)

    def _fork_reason(self, header: FrameHeader, digest: str) -> str | None:
        """Why this frame belongs to another history than the one stored; None when it does not."""
        frame, seq, last = self.cursor
        if header.epoch != self.epoch:
            raise WireError(f"A frame of epoch {header.epoch} was offered to the log of {self.epoch}.")
        if header.frame == frame and digest != last:
            return ForkCode.OTHER_FRAME.says(f"another frame {frame} is already stored")
        if header.frame <= frame:
            return None
        if header.prev != (last or frames.genesis(self.gateway, header.epoch, self.stream)):
            return ForkCode.NOT_NEXT.says(f"frame {header.frame} does not follow the stored frame {frame}")
        if header.first_seq != seq + 1:
            return ForkCode.NOT_NEXT.says(
                f"frame {header.frame} begins at entry {header.first_seq}, expected {seq + 1}"
            )
        return self._ignorance(header) if header.frame == 1 else None

    def _ignorance(self, header: FrameHeader) -> str | None:
        """Which older log a new epoch does not know: it would take what was scanned there for new."""
        for epoch, cursor in sorted(self.older.items()):
            known = header.after.get(epoch)
            if cursor.frame and (known is None or (known.frame == cursor.frame and known.digest != cursor.digest)):
                return ForkCode.UNKNOWN_EPOCH.says(
                    f"the cloud has {cursor.seq} entries of epoch {epoch}, which this ledger does not know"
                )
        return None

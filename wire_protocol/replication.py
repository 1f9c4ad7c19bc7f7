"""Replication of one stream of frames: a sender at the edge, a receiver in the cloud.

Both are sans-I/O state machines: events in, effects out. The same code runs in production, in property tests and in
the simulator (https://sans-io.readthedocs.io).

The protocol is go-back-N with cumulative acknowledgements and a receiver-set window. After a timeout the sender
probes with the first unacknowledged frame alone: if only acknowledgements were lost, one answer settles the whole
window, and a hundred gateways coming back at once do not send a hundred windows twice.

Invariant: nothing here waits, reads a clock or draws randomness; time in milliseconds and jitter are arguments.
Invariant: the receiver moves its cursor only from frame N to frame N+1 of the same chain.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from wire_protocol import frames
from wire_protocol.errors import WireError
from wire_protocol.frames import FrameHeader
from wire_protocol.messages import Ack, Rejected
from wire_protocol.topics import Stream


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


@dataclass(frozen=True, slots=True)
class Seal:
    """Seal up to `entries_max` of the waiting entries into the next frame, then call `sealed`."""

    entries_max: int


@dataclass(frozen=True, slots=True)
class Send:
    """Publish a sealed frame, byte for byte."""

    frame: int


@dataclass(frozen=True, slots=True)
class Acked:
    """Frames up to this one are durable in the cloud."""

    frame: int


@dataclass(frozen=True, slots=True)
class SteppedBack:
    """The cloud fell back to an older cursor (a stale replica took over): frames after `frame` are sent again."""

    frame: int


@dataclass(frozen=True, slots=True)
class Forked:
    """The cloud has another history than this ledger. Sending has stopped."""

    reason: str


Effect: TypeAlias = Seal | Send | Acked | SteppedBack | Forked


class Sender:
    """The edge's end of one stream.

    Args:
        stream: which stream.
        epoch: the ledger's epoch; acknowledgements of another are ignored.
        sealed: the last frame sealed, 0 for none.
        acked: the last frame known to be durable in the cloud.
        limits: the bounds.
        jitter: returns a factor to multiply a delay with, typically 0.5 to 1.5.
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
    ) -> None:
        if not 0 <= acked <= sealed:
            raise WireError(f"A sender cannot have {acked} frames acknowledged of {sealed} sealed.")
        self.stream, self.epoch = stream, epoch
        self.sealed_frame, self.acked_frame = sealed, acked
        self.limits = limits or SenderLimits()
        self.forked: str | None = None
        self._jitter = jitter
        self._connected = False
        self._sealing = False
        self._probing = False
        self._window = self.limits.window_frames_max
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
        if ack.stream != self.stream or self.forked:
            return []
        if ack.fork or (ack.epoch == self.epoch and ack.frame > self.sealed_frame):
            return self._fork(ack.fork or f"the cloud has frame {ack.frame}, this ledger only {self.sealed_frame}")
        if ack.epoch not in {self.epoch, None}:
            return []
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

    def _fork(self, reason: str) -> list[Effect]:
        self.forked = reason
        return [Forked(reason)]


class Cursor(NamedTuple):
    """How far the cloud has one stream of one gateway; moves in the transaction that stores the rows."""

    epoch: str | None
    frame: int
    seq: int
    digest: str


NO_CURSOR: Final = Cursor(None, 0, 0, "")


class Verdict(Enum):
    """What to do with a frame."""

    MERGE = "merge"
    DUPLICATE = "duplicate"
    AHEAD = "ahead"
    FORK = "fork"


class Receiver:
    """The cloud's end of one stream of one gateway, over a cursor that somebody else stores.

    `merged` and `rejected` collect what the next acknowledgement must say.
    """

    def __init__(self, gateway: str, stream: Stream, cursor: Cursor) -> None:
        self.gateway, self.stream, self.cursor = gateway, stream, cursor
        self.gap = False
        self.fork: str | None = None

    def offer(self, header: FrameHeader, digest: str) -> Verdict:
        """Judge a frame; on MERGE the cursor has moved and the caller must store the rows with it."""
        if header.frame > self.cursor.frame + 1 and header.epoch == (self.cursor.epoch or header.epoch):
            self.gap = True
            return Verdict.AHEAD
        if problem := self._fork_reason(header, digest):
            self.fork = problem
            return Verdict.FORK
        if header.frame <= self.cursor.frame:
            return Verdict.DUPLICATE
        self.cursor = Cursor(header.epoch, header.frame, header.last_seq, digest)
        self.gap = False
        return Verdict.MERGE

    def ack(self, now_ms: int, window: int, *, rejected: Iterable[Rejected] = (), ask: bool = False) -> Ack:
        """The acknowledgement of everything up to the cursor. Send it only after the cursor is committed.

        Args:
            now_ms: the cloud's clock.
            window: how many frames the gateway may have in flight.
            rejected: entries that were quarantined.
            ask: answer to a gateway that announced itself: also say which frame is wanted next.
        """
        epoch, frame, seq, _ = self.cursor
        return Ack(
            stream=self.stream,
            epoch=epoch,
            frame=frame,
            seq=seq,
            now_ms=now_ms,
            window=window,
            rejected=tuple(rejected),
            want=frame + 1 if ask or self.gap else None,
            fork=self.fork,
        )

    def _fork_reason(self, header: FrameHeader, digest: str) -> str | None:
        """Why this frame belongs to another history than the one stored; None when it does not."""
        epoch, frame, seq, last = self.cursor
        if header.epoch != (epoch or header.epoch):
            return f"epoch {header.epoch} is not the current {epoch}"
        if header.frame == frame and digest != last:
            return f"another frame {frame} is already stored"
        if header.frame <= frame:
            return None
        if header.prev != (last or frames.genesis(self.gateway, header.epoch, self.stream)):
            return f"frame {header.frame} does not follow the stored frame {frame}"
        if header.first_seq != seq + 1:
            return f"frame {header.frame} begins at entry {header.first_seq}, expected {seq + 1}"
        return None

"""Shipping: what one ledger does on its contacts with the cloud, whatever carries the messages.

The decisions are the senders' (`wire_protocol.replication`) and the site link's; here they are carried out on the
ledger. Nothing here reads a clock of its own, opens a connection or waits for anything but the ledger's writer, so the
simulator (`simulation`) runs this very code on virtual time.

Invariant: only an acknowledgement that the cloud sent after its commit moves the cursor.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias

import structlog

from edge_agent.ledger import outbox, streams
from edge_agent.ledger.clock import Clock
from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.outbox import Outbox
from edge_agent.ledger.recovery import Opened
from edge_agent.ledger.writer import Write
from edge_agent.link.site_sync import CloudLost, SiteSync
from edge_agent.provisioning.twin import narrow
from edge_agent.settings import EdgeSettings
from wire_protocol.frames import FRAME_BYTES_MAX
from wire_protocol.messages import Ack, ClampedTime, Rejected
from wire_protocol.poll_timer import PollTimer
from wire_protocol.reasons import ForkCode
from wire_protocol.replication import Acked, Effect, Forked, Seal, Send, Sender, SenderLimits, SteppedBack
from wire_protocol.site_messages import SiteFrame, SiteHeads
from wire_protocol.topics import STREAMS, Stream

OFFSET_MS_MIN: Final = 1_000  # what is below is within what a round trip can tell; the clock counts as right
TIME_WAIT_MS: Final = 5_000  # how long nothing is sealed for want of the true time, from the beginning of a contact

log = structlog.get_logger("edge_agent.link.uplink")

Put: TypeAlias = Callable[[Stream, int, bytes], None]
"""Puts a frame on the link and does not wait; given stream, number and body."""
FrameBytesMax: TypeAlias = Callable[[Stream], int]
"""How large a frame of a stream the broker takes."""


class EpochOpened(Exception):
    """The ledger carries on in a new epoch; this contact was about the old one."""

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened.epoch)
        self.opened = opened


@dataclass(slots=True)
class StreamState:
    """One stream on its way up: its sender, and what the sender cannot know."""

    sender: Sender
    source_id: int
    waiting_since_ms: int | None = None


def jitter() -> float:
    """How much a sender's timer is stretched, so that a thousand gateways do not resend in step."""
    return random.uniform(0.75, 1.25)  # noqa: S311 - spreading load, not secrecy


def sender_limits(settings: EdgeSettings, window_frames: int | None) -> SenderLimits:
    """The limits of the senders; a twin narrows the settings."""
    return SenderLimits(
        window_frames_max=narrow(settings.window_frames_max, window_frames),
        live_entries_max=settings.frame_entries_max,
        seal_delay_ms=settings.seal_delay_ms,
        resend_delay_ms=settings.resend_delay_ms,
        resend_delay_ms_max=settings.resend_delay_ms_max,
    )


@dataclass(slots=True)
class Shipping:
    """A ledger's frames on their way up, and its site's on their way down.

    Args:
        gateway: whose ledger it is.
        reader: a read-only connection to it.
        write: hands a write to the ledger's writer and waits for it.
        limits: of the senders, as they are now.
        settings, clock: as everywhere.
        site: the site's other logs.
        jitter: a factor around 1 for timers.
    """

    gateway: str
    reader: Connection
    write: Write
    limits: Callable[[], SenderLimits]
    settings: EdgeSettings
    clock: Clock
    site: SiteSync
    jitter: Callable[[], float] = jitter
    epoch: str = ""
    """The log that is shipped, as of the last contact."""
    offset_ms: int | None = None
    """How far the cloud's clock is ahead of this gateway's, once an acknowledgement gave its time."""
    stream_states: dict[Stream, StreamState] = field(default_factory=dict)
    contact_ms: int | None = None
    _zero_ms: int | None = None
    _put: Put = lambda _stream, _frame, _body: None
    _frame_bytes_max: FrameBytesMax = lambda _stream: FRAME_BYTES_MAX

    # --- contacts -----------------------------------------------------------------------------------------------

    def connected(self, epoch: str, put: Put, frame_bytes_max: FrameBytesMax = lambda _stream: FRAME_BYTES_MAX) -> None:
        """A contact begins, in this epoch; `put` is how a frame gets on the link, and `frame_bytes_max` its bound."""
        self.epoch, self._put, self._frame_bytes_max = epoch, put, frame_bytes_max
        self.contact_ms, self._zero_ms = self.clock.mono_ms(), None
        self.stream_states = {stream: self._stream_state(stream) for stream in STREAMS}
        self.site.connected(epoch)

    def _stream_state(self, stream: Stream) -> StreamState:
        at = streams.position(self.reader, stream)
        sender = Sender(
            stream,
            self.epoch,
            sealed=at.sealed_frame,
            acked=at.acked_frame,
            limits=self.limits(),
            jitter=self.jitter,
            digest_of=lambda frame: outbox.digest(self.reader, stream, frame),
        )
        sender.forked = at.fork
        return StreamState(sender, at.source_id)

    def limits_changed(self) -> None:
        """The senders have other limits than before."""
        for stream_state in self.stream_states.values():
            stream_state.sender.limits = self.limits()

    async def begin(self) -> None:
        """Send what was in flight when the last contact ended."""
        for stream_state in self.stream_states.values():
            await self._execute(stream_state, stream_state.sender.connected(self.clock.mono_ms()))

    async def look(self) -> None:
        """Feed the senders with what was committed and what time it is."""
        for stream, stream_state in self.stream_states.items():
            # Their time is the monotonic clock's: a wall clock that is set back would put off every resend.
            now_ms = self.clock.mono_ms()
            waiting = streams.waiting(self.reader, stream, stream_state.source_id) if self.may_seal() else 0
            if not waiting:
                stream_state.waiting_since_ms = None
            elif stream_state.waiting_since_ms is None:
                stream_state.waiting_since_ms = now_ms
            effects = stream_state.sender.waiting(waiting, stream_state.waiting_since_ms or now_ms, now_ms)
            await self._execute(stream_state, effects + stream_state.sender.tick(now_ms))

    def next_deadline_ms(self) -> int | None:
        """When to look, or to ask for the site's logs, whatever else happens; None: not before something does."""
        ticking: list[Sender | PollTimer] = [
            *(stream_state.sender for stream_state in self.stream_states.values()),
            self.site.timer,
        ]
        return min((at for each in ticking if (at := each.next_deadline_ms()) is not None), default=None)

    # --- down ---------------------------------------------------------------------------------------------------

    def is_waiting(self) -> bool:
        """Whether frames are on their way that the cloud has not acknowledged."""
        return any(state.sender.in_flight > 0 for state in self.stream_states.values())

    async def acknowledged(self, ack: Ack) -> None:
        """Take what the cloud says of a stream."""
        if ack.epoch not in {self.epoch, None}:
            return  # of a ledger that was here before, or of a clone of this one
        await self._learn_time(ack)
        stream_state = self.stream_states[ack.stream]
        effects = stream_state.sender.receive(ack, self.clock.mono_ms())
        if not stream_state.sender.forked:
            # Else it speaks of another history: its verdicts are on entries that only have the same numbers.
            await self._take_verdicts(ack)
        await self._execute(stream_state, effects)

    async def _learn_time(self, ack: Ack) -> None:
        """The cloud's clock tells when our monotonic clock was zero, up to the time the acknowledgement travelled.

        That can only make it seem earlier: within a contact the latest is the best.
        """
        self.offset_ms = ack.now_ms - self.clock.now_ms()
        zero_ms = ack.now_ms - self.clock.mono_ms()
        if self._zero_ms is None or zero_ms >= self._zero_ms + OFFSET_MS_MIN:
            await self.write(partial(_note_time, zero_ms))
            self._zero_ms = zero_ms

    async def _take_verdicts(self, ack: Ack) -> None:
        if ack.rejected:
            new = await self.write(partial(_note_verdicts, ack.stream, ack.rejected))
            if new:
                log.warning("entries_rejected", stream=ack.stream, entries=new)
        if ack.bounded:
            log.warning("times_bounded", stream=ack.stream, entries=len(ack.bounded))
            await self.write(partial(_note_clamped, ack.stream, ack.bounded))

    async def passed_down(self, piece: SiteFrame | SiteHeads) -> None:
        """Take a frame of the site's other logs, or the end of an answer.

        Raises:
            InvalidFrame: the frame is none.
            EpochOpened: the ledger's own log goes on in a new epoch; the contact ends.
        """
        outcome = await self.site.take(piece, forked=self.forked, before_opening=self._stop_streams)
        if isinstance(outcome, CloudLost):
            await self._fork("ledger", outcome.reason)
        elif outcome is not None:
            log.warning("epoch_opened", epoch=outcome.epoch, carried=outcome.carried, known=outcome.known)
            self.epoch = outcome.epoch
            raise EpochOpened(outcome)

    # --- forks --------------------------------------------------------------------------------------------------

    @property
    def forked(self) -> bool:
        """Whether a stream is stopped."""
        return any(stream_state.sender.forked for stream_state in self.stream_states.values())

    def epoch_wanted(self) -> None:
        """The ledger has noted that it is to go on in a new epoch."""
        self.stream_states["ledger"].sender.forked = streams.position(self.reader, "ledger").fork
        self.site.timer.poll_now(self.clock.mono_ms())

    async def _fork(self, stream: Stream, reason: str) -> None:
        """Stop a stream, and fetch what the cloud has of this gateway."""
        log.error("ledger_forked", stream=stream, reason=reason)
        self.stream_states[stream].sender.forked = reason
        await self.write(partial(_note_fork, stream, reason))
        self.site.timer.poll_now(self.clock.mono_ms())

    def _stop_streams(self) -> None:
        """Nothing may be sealed or sent any more in this epoch."""
        for stream_state in self.stream_states.values():
            stream_state.sender.disconnected()

    # --- up -----------------------------------------------------------------------------------------------------

    def may_seal(self) -> bool:
        """Whether the ledger knows this boot's true time, or has waited long enough for it.

        A frame is sealed once: what is sealed before the first acknowledgement keeps its wrong time.
        """
        if self.forked:
            return False  # whatever waits goes into the new epoch
        waited_ms = self.clock.mono_ms() - (self.contact_ms or 0)
        return waited_ms >= TIME_WAIT_MS or outbox.time_known(self.reader, self.clock.boot)

    async def _execute(self, stream_state: StreamState, effects: list[Effect]) -> None:
        """Carry out what a sender decided; sealing may make it decide more."""
        while effects:
            effect = effects.pop(0)
            match effect:
                case Send(frame):
                    await self._send(stream_state.sender.stream, frame)
                case Seal(entries_max):
                    effects += await self._seal(stream_state, entries_max)
                case Acked(frame):
                    await self.write(partial(_note_acked, stream_state.sender.stream, frame))
                case SteppedBack(frame):
                    await self._step_back(stream_state.sender.stream, frame)
                case Forked(reason):
                    await self._fork(stream_state.sender.stream, reason)

    async def _send(self, stream: Stream, frame: int) -> None:
        body = outbox.body(self.reader, stream, frame)
        if body is None:
            # The cloud has fallen back behind our frames; the entries are all here, and go up in a new epoch.
            sentence = f"the cloud wants frame {frame}, which is no longer kept here"
            await self._fork(stream, ForkCode.NOT_KEPT.says(sentence))
        else:
            self._put(stream, frame, body)

    async def _seal(self, stream_state: StreamState, entries_max: int) -> list[Effect]:
        stream, contact_ms = stream_state.sender.stream, self.contact_ms
        bytes_max = self._frame_bytes_max(stream)
        sealed = await self.write(
            lambda ledger: Outbox(ledger).seal(stream, entries_max, contact_mono_ms=contact_ms, bytes_max=bytes_max)
        )
        at = streams.position(self.reader, stream)
        stream_state.source_id, stream_state.waiting_since_ms = at.source_id, None
        if sealed is None:
            return stream_state.sender.nothing_sealed()
        return stream_state.sender.sealed(sealed.frame, sealed.waiting, self.clock.mono_ms())

    async def _step_back(self, stream: Stream, frame: int) -> None:
        log.warning("cloud_stepped_back", stream=stream, frame=frame)
        await self.write(partial(_note_step_back, stream, frame))


def _note_acked(stream: Stream, frame: int, ledger: Ledger) -> None:
    Outbox(ledger).acked(stream, frame)


def _note_time(zero_ms: int, ledger: Ledger) -> None:
    Outbox(ledger).learn_time(zero_ms)


def _note_clamped(stream: Stream, clamped: Sequence[ClampedTime], ledger: Ledger) -> None:
    Outbox(ledger).bounded(stream, clamped)


def _note_verdicts(stream: Stream, rejected: Sequence[Rejected], ledger: Ledger) -> int:
    return Outbox(ledger).verdicts(stream, rejected)


def _note_step_back(stream: Stream, frame: int, ledger: Ledger) -> None:
    Outbox(ledger).stepped_back(stream, frame)


def _note_fork(stream: Stream, reason: str, ledger: Ledger) -> None:
    Outbox(ledger).forked(stream, reason)

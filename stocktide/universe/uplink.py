"""The uplink of a virtual gateway: production's senders and outbox; waiting and publishing are virtual.

This follows `edge_agent.uplink` step by step, which cannot run without asyncio.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from edge_agent import outbox
from edge_agent.errors import LedgerFull
from edge_agent.ledger import Ledger
from edge_agent.outbox import Outbox
from wire_protocol import topics
from wire_protocol.errors import WireError
from wire_protocol.messages import Ack, GatewayStatus, Rejected, StreamStatus
from wire_protocol.replication import Acked, Effect, Forked, Seal, Send, Sender, SenderLimits, SteppedBack
from wire_protocol.topics import STREAMS, Channel, Stream

if TYPE_CHECKING:
    from stocktide.universe.gateway import Gateway

DRAIN_ENTRIES_MAX: Final = 12
RECONNECT_MS_MAX: Final = 20_000
STATUS_MS: Final = 1_200_000
OFFSET_MS_MIN: Final = 1_000
RETRY_MS: Final = 5_000


@dataclass(slots=True)
class Lane:
    """One stream on its way up, and what its sender decided that is not carried out yet."""

    sender: Sender
    source_id: int
    waiting_since_ms: int | None = None
    effects: deque[Effect] = field(default_factory=deque)
    held: bool = False


class VirtualUplink:
    """One gateway's link to the cloud; `online` from the moment its broker answered."""

    def __init__(self, gateway: "Gateway") -> None:
        self.gateway, self.world = gateway, gateway.world
        self.online = False
        self.lanes: dict[Stream, Lane] = {}
        self._zero_ms: int | None = None
        self.publish: Callable[[str, bytes], None] = _nowhere
        self.will: Callable[[], None] = _nobody
        self._contact = 0
        self._contact_ms = 0
        self._alarm_ms: int | None = None
        self._rng = gateway.world.rng(f"{gateway.name}.uplink")

    def connect_soon(self) -> None:
        """Try to connect after a pause with jitter."""
        self.gateway.later(self._rng.randint(100, RECONNECT_MS_MAX), self._connect)

    def lose_link(self) -> None:
        """The link is down, and this end has noticed; the broker tells the workers."""
        if self.online:
            self.will()
        self.online = False
        self._contact += 1
        self._alarm_ms = None
        for lane in self.lanes.values():
            lane.sender.disconnected()

    def _connect(self) -> None:
        gateway = self.gateway
        if self.online or gateway.name in gateway.network.cut:
            return
        self._contact += 1
        self.online, self._contact_ms, self._alarm_ms = True, gateway.clock.mono_ms(), None
        self._zero_ms = None
        gateway.note("is online")
        self.lanes = {stream: self._lane(stream) for stream in STREAMS}
        self._report(self._contact)
        for lane in self.lanes.values():
            self._carry_out(lane, lane.sender.connected(gateway.sender_ms()))
        self.wake()

    def _lane(self, stream: Stream) -> Lane:
        at, settings = outbox.position(self.gateway.ledger.connection, stream), self.gateway.settings
        limits = SenderLimits(
            window_frames_max=settings.window_frames_max,
            live_entries_max=settings.frame_entries_max,
            drain_entries_max=DRAIN_ENTRIES_MAX,
        )
        sender = Sender(
            stream,
            self.gateway.ledger.epoch,
            sealed=at.sealed_frame,
            acked=at.acked_frame,
            limits=limits,
            jitter=lambda: self._rng.uniform(0.75, 1.25),
            digest_of=lambda frame: outbox.digest(self.gateway.ledger.connection, stream, frame),
        )
        sender.forked = at.fork
        return Lane(sender, at.source_id)

    def _report(self, contact: int) -> None:
        """Announce, and go on doing so while this contact lasts."""
        if not self.online or contact != self._contact:
            return
        gateway = self.gateway
        at = {stream: outbox.position(gateway.ledger.connection, stream) for stream in STREAMS}
        status = GatewayStatus(
            state="online",
            epoch=gateway.ledger.epoch,
            version=version("stocktide"),
            streams={
                stream: StreamStatus(
                    last_seq=place.sealed_seq,
                    sealed_frame=place.sealed_frame,
                    acked_frame=place.acked_frame,
                    acked_seq=place.acked_seq,
                )
                for stream, place in at.items()
            },
        )
        self.publish(topics.link(gateway.name, Channel.STATUS), status.encode())
        gateway.later(STATUS_MS, lambda: self._report(contact))

    def wake(self) -> None:
        """Something was committed, or time has passed: feed the senders."""
        if not self.online:
            return
        connection = self.gateway.ledger.connection
        for stream, lane in self.lanes.items():
            if lane.held:
                continue
            now_ms = self.gateway.sender_ms()
            waiting = outbox.waiting(connection, stream, lane.source_id)
            if not waiting:
                lane.waiting_since_ms = None
            elif lane.waiting_since_ms is None:
                lane.waiting_since_ms = now_ms
            effects = lane.sender.waiting(waiting, lane.waiting_since_ms or now_ms, now_ms)
            self._carry_out(lane, effects + lane.sender.tick(now_ms))
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Wake at the senders' next deadline."""
        deadlines = [at for lane in self.lanes.values() if not lane.held and (at := lane.sender.next_deadline_ms())]
        if not deadlines or not self.online:
            return
        at_ms = self.world.now_ms + max(1, min(deadlines) - self.gateway.sender_ms())
        if self._alarm_ms is not None and self.world.now_ms < self._alarm_ms <= at_ms:
            return
        self._alarm_ms, contact = at_ms, self._contact

        def ring() -> None:
            if contact == self._contact:
                self._alarm_ms = None
                self.wake()

        self.gateway.later(at_ms - self.world.now_ms, ring)

    def receive(self, payload: bytes) -> None:
        """A payload on the acknowledgement topic."""
        if self.online:
            self.gateway.guarded(lambda: self._receive(payload))

    def _receive(self, payload: bytes) -> None:
        try:
            ack = Ack.decode(payload)
        except WireError:
            self.gateway.note("cannot read an acknowledgement")
            return
        self._learn_time(ack)
        for lane in self.lanes.values():  # each sender knows what is its own
            effects = lane.sender.receive(ack, self.gateway.sender_ms())
            if ack.rejected and ack.stream == lane.sender.stream:
                self._quietly(partial(_note_verdicts, ack.stream, ack.rejected))
            self._carry_out(lane, effects)
        self.wake()

    def _learn_time(self, ack: Ack) -> None:
        zero_ms = ack.now_ms - self.gateway.clock.mono_ms()
        if self._zero_ms is None or zero_ms >= self._zero_ms + OFFSET_MS_MIN:
            self._zero_ms = zero_ms
            self._quietly(lambda ledger: Outbox(ledger).learn_time(zero_ms))

    def _quietly(self, run: Callable[[Ledger], None]) -> None:
        try:
            self.gateway.write(run)
        except LedgerFull:
            return

    def _carry_out(self, lane: Lane, effects: list[Effect]) -> None:
        lane.effects.extend(effects)
        while lane.effects and not lane.held:
            effect = lane.effects.popleft()
            try:
                lane.effects.extend(self._do(lane, effect))
            except LedgerFull:
                lane.effects.appendleft(effect)
                self._hold(lane)
        self.world.checks.in_flight(self.gateway.name, lane.sender)

    def _hold(self, lane: Lane) -> None:
        """No room on the disk: this lane waits and tries again."""
        lane.held, contact = True, self._contact

        def again() -> None:
            if contact == self._contact:
                lane.held = False
                self._carry_out(lane, [])
                self.wake()

        self.gateway.later(RETRY_MS, again)

    def _do(self, lane: Lane, effect: Effect) -> list[Effect]:
        stream, gateway = lane.sender.stream, self.gateway
        match effect:
            case Send(frame):
                self._send(lane, frame)
            case Seal(entries_max):
                return self._seal(lane, entries_max)
            case Acked(frame):
                gateway.write(lambda ledger: Outbox(ledger).acked(stream, frame))
            case SteppedBack(frame):
                gateway.note(f"steps back to {stream} frame {frame}")
                gateway.write(lambda ledger: Outbox(ledger).stepped_back(stream, frame))
            case Forked(reason):
                self._forked(lane, reason)
        return []

    def _send(self, lane: Lane, frame: int) -> None:
        stream = lane.sender.stream
        body = outbox.body(self.gateway.ledger.connection, stream, frame)
        if body is None:
            lane.sender.forked = f"the cloud wants frame {frame}, which is no longer kept here"
            self._forked(lane, lane.sender.forked)
            return
        self.gateway.at_brink("before it sends a frame")
        self.gateway.note(f"sends {stream} frame {frame}")
        self.publish(topics.up(self.gateway.name, stream), body)

    def _forked(self, lane: Lane, reason: str) -> None:
        self.gateway.note(f"stops: {reason}")
        self.gateway.write(lambda ledger: Outbox(ledger).forked(lane.sender.stream, reason))
        self.world.checks.forked(self.gateway.name, reason)

    def _seal(self, lane: Lane, entries_max: int) -> list[Effect]:
        stream, gateway, contact_ms = lane.sender.stream, self.gateway, self._contact_ms
        sealed = gateway.write(lambda ledger: Outbox(ledger).seal(stream, entries_max, contact_mono_ms=contact_ms))
        lane.source_id = outbox.position(gateway.ledger.connection, stream).source_id
        lane.waiting_since_ms = None
        if sealed is None:
            return lane.sender.nothing_sealed()
        gateway.note(f"seals {stream} frame {sealed.frame}, {sealed.entries} entries")
        return lane.sender.sealed(sealed.frame, sealed.waiting, gateway.sender_ms())


def _note_verdicts(stream: Stream, rejected: tuple[Rejected, ...], ledger: Ledger) -> None:
    Outbox(ledger).verdicts(stream, rejected)


def _nowhere(_topic: str, _payload: bytes) -> None:
    """Where nothing is connected yet."""


def _nobody() -> None:
    """As above, for the last will."""

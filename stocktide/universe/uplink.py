"""The uplink of a virtual machine: `edge_agent.uplink` function by function, its coroutines as generators (`tasks`)."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from edge_agent import outbox, recovery
from edge_agent.ledger import Ledger
from edge_agent.outbox import Outbox
from edge_agent.recovery import Recovery
from edge_agent.site import SiteBook, unlike_cloud
from stocktide.universe import notes, tasks
from stocktide.universe.tasks import EpochOpened, Steps
from wire_protocol import frames, topics
from wire_protocol.errors import WireError
from wire_protocol.messages import (
    Ack,
)
from wire_protocol.replication import Acked, Effect, Forked, Seal, Send, Sender, SenderLimits, SteppedBack, Verdict
from wire_protocol.site import SiteReader
from wire_protocol.site_messages import SITE_LOGS_MAX, LogCursor, SiteAsk, SiteFrame, SiteHeads, unpack
from wire_protocol.topics import STREAMS, Channel, Stream

if TYPE_CHECKING:
    from stocktide.universe.machine import Machine

DRAIN_ENTRIES_MAX: Final = 12
RECONNECT_MS_MAX: Final = 20_000
STATUS_MS: Final = 1_200_000
OFFSET_MS_MIN: Final = 1_000
TIME_WAIT_MS: Final = 5_000

# Every gateway of a site and the cloud decode the same frames; a frame is never changed by who reads it.
decoded = lru_cache(4_096)(frames.decode)


@dataclass(slots=True)
class Lane:
    """One stream on its way up: its sender, and what the sender cannot know."""

    sender: Sender
    source_id: int
    waiting_since_ms: int | None = None


class VirtualUplink:
    """One machine's link to the cloud; `online` from the moment its broker answered."""

    def __init__(self, machine: "Machine") -> None:
        self.machine, self.world = machine, machine.world
        self.online = self.complete = False
        self.epoch = machine.ledger.epoch
        self.lanes: dict[Stream, Lane] = {}
        self.publish: Callable[[str, bytes], None] = lambda _topic, _payload: None
        self.will: Callable[[], None] = lambda: None
        self.joined: Callable[[], None] = lambda: None
        self._site = SiteReader(interval_ms=round(machine.settings.site_ask_interval_s * 1_000))
        self._zero_ms: int | None = None
        self._lost_since_ms: int | None = None
        self._contact = self._contact_ms = 0
        self._incoming: deque[tuple[Channel, bytes]] = deque()
        self._receiving = self._pumping = self._awake = False
        self._alarm_ms: int | None = None
        self._rng = machine.world.rng(f"{machine.name}.uplink")

    # --- contacts -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The agent's process begins; nothing is remembered."""
        self._lost_since_ms = None

    def connect_soon(self, at_least_ms: int = 100) -> None:
        """Try to connect after a pause with jitter."""
        self.machine.later(self._rng.randint(at_least_ms, max(RECONNECT_MS_MAX, 3 * at_least_ms)), self._connect)

    def lose_link(self, *, farewell: bool = False) -> None:
        """The link is down, and this end has noticed; unless it said farewell, the broker tells the workers."""
        if self.online and not farewell:
            self.will()
        self.online = self._receiving = self._pumping = False
        self._contact += 1
        self._alarm_ms = None
        self._incoming.clear()
        self._site.disconnected()

    def _connect(self) -> None:
        machine = self.machine
        if self.online or machine.name in machine.network.cut:
            return
        if machine.writes_wait():
            self.connect_soon()  # production is still in the contact before, waiting for its write
            return
        self._contact += 1
        self.epoch = machine.ledger.epoch
        self.online, self._contact_ms, self._alarm_ms = True, self._now_ms(), None
        self._zero_ms = None
        machine.note(f"is online in epoch {self.epoch[-4:]}")
        self.joined()
        self.lanes = {stream: self._lane(stream) for stream in STREAMS}
        self._site.connected(self._now_ms())
        self._report(self._contact)
        machine.later(TIME_WAIT_MS, self.wake)
        self._pumping = True
        self._run(self._pump(connected=True), self._pumped)

    def _lane(self, stream: Stream) -> Lane:
        connection, settings = self.machine.ledger.connection, self.machine.settings
        at = outbox.position(connection, stream)
        sender = Sender(
            stream,
            self.epoch,
            sealed=at.sealed_frame,
            acked=at.acked_frame,
            limits=SenderLimits(
                window_frames_max=settings.window_frames_max,
                live_entries_max=settings.frame_entries_max,
                drain_entries_max=DRAIN_ENTRIES_MAX,
            ),
            jitter=lambda: self._rng.uniform(0.75, 1.25),
            digest_of=lambda frame: outbox.digest(connection, stream, frame),
        )
        sender.forked = at.fork
        return Lane(sender, at.source_id)

    def _report(self, contact: int) -> None:
        """Announce, and go on doing so while this contact lasts."""
        if not self.online or contact != self._contact:
            return
        machine = self.machine
        status = notes.status(machine.ledger)
        self.publish(topics.link(machine.gateway, Channel.STATUS), status.encode())
        machine.later(STATUS_MS, lambda: self._report(contact))

    # --- tasks --------------------------------------------------------------------------------------------------

    def _run(self, steps: Steps, ended: Callable[[], None]) -> None:
        """Run a task of this contact."""
        contact = self._contact
        tasks.run(self.machine, steps, ended, self._epoch_opened, lambda: contact == self._contact)

    def _epoch_opened(self) -> None:
        self.lose_link(farewell=True)
        self.connect_soon()

    def wake(self) -> None:
        """Something was committed, or time has passed: feed the senders."""
        self._awake = True
        if self.online and not self._pumping:
            self._pumping = True
            self._run(self._pump(), self._pumped)

    def ask_soon(self) -> None:
        """What is known of the site's other logs has changed."""
        self._site.ask_now(self._now_ms())
        self.wake()

    def _pump(self, *, connected: bool = False) -> Steps:
        if connected:
            for lane in self.lanes.values():
                yield from self._carry_out(lane, lane.sender.connected(self._now_ms()))
        self._awake = True
        while self._awake:
            self._awake = False
            for stream, lane in self.lanes.items():
                now_ms = self._now_ms()
                waiting = self._waiting(stream, lane) if self._may_seal() else 0
                if not waiting:
                    lane.waiting_since_ms = None
                elif lane.waiting_since_ms is None:
                    lane.waiting_since_ms = now_ms
                effects = lane.sender.waiting(waiting, lane.waiting_since_ms or now_ms, now_ms)
                yield from self._carry_out(lane, effects + lane.sender.tick(now_ms))
            self._ask()

    def _waiting(self, stream: Stream, lane: Lane) -> int:
        return outbox.waiting(self.machine.ledger.connection, stream, lane.source_id)

    def _pumped(self) -> None:
        self._pumping = False
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Wake at the next deadline."""
        ticking: list[Sender | SiteReader] = [*(lane.sender for lane in self.lanes.values()), self._site]
        deadlines = [at for each in ticking if (at := each.next_deadline_ms()) is not None]
        if not deadlines or not self.online:
            return
        at_ms = self.world.now_ms + max(1, min(deadlines) - self._now_ms())
        if self._alarm_ms is not None and self.world.now_ms < self._alarm_ms <= at_ms:
            return
        self._alarm_ms, contact = at_ms, self._contact

        def ring() -> None:
            if contact == self._contact:
                self._alarm_ms = None
                self.wake()

        self.machine.later(at_ms - self.world.now_ms, ring)

    def _now_ms(self) -> int:
        return self.machine.clock.mono_ms()

    # --- down ---------------------------------------------------------------------------------------------------

    def receive(self, channel: Channel, payload: bytes) -> None:
        """A payload from the cloud."""
        if not self.online:
            return
        self._incoming.append((channel, payload))
        if not self._receiving:
            self._receiving = True
            self.machine.guarded(lambda: self._run(self._receive(), self._received))

    def _receive(self) -> Steps:
        while self._incoming:
            channel, payload = self._incoming.popleft()
            try:
                if channel is Channel.ACK:
                    yield from self._acknowledged(Ack.decode(payload))
                else:
                    for piece in unpack(payload):
                        yield from self._passed_down(piece)
            except WireError:
                self.machine.note("cannot read a message of the cloud")

    def _received(self) -> None:
        self._receiving = False
        self._set_alarm()

    def _acknowledged(self, ack: Ack) -> Steps:
        if ack.epoch not in {self.epoch, None}:
            return
        yield from self._learn_time(ack)
        lane = self.lanes[ack.stream]
        effects = lane.sender.receive(ack, self._now_ms())
        if ack.rejected:
            self.machine.note(f"hears that {len(ack.rejected)} entries do not count")
            yield partial(notes.verdicts, ack)
        if ack.bounded:
            yield partial(notes.bounded, ack)
        yield from self._carry_out(lane, effects)

    def _learn_time(self, ack: Ack) -> Steps:
        zero_ms = ack.now_ms - self.machine.clock.mono_ms()
        if self._zero_ms is None or zero_ms >= self._zero_ms + OFFSET_MS_MIN:
            boot, late_ms = self.machine.clock.boot, self.world.now_ms - ack.now_ms
            yield partial(notes.time, zero_ms)
            self._zero_ms = zero_ms
            self.world.checks.taught(boot, late_ms)
            self.wake()

    def _may_seal(self) -> bool:
        if self.forked:
            return False
        waited_ms = self._now_ms() - self._contact_ms
        return waited_ms >= TIME_WAIT_MS or outbox.time_known(self.machine.ledger.connection, self.machine.clock.boot)

    def _passed_down(self, message: SiteFrame | SiteHeads) -> Steps:
        now_ms = self._now_ms()
        if isinstance(message, SiteHeads):
            yield from self._answered(message, now_ms)
            return
        frame = decoded(message.frame)
        verdict = yield from self._book(message, frame)
        if verdict is Verdict.MERGE:
            self.machine.note(f"books frame {frame.header.frame} of {message.gateway} {frame.header.epoch[-4:]}")
        elif verdict is Verdict.AHEAD:
            self._site.gap(now_ms)
        elif verdict is Verdict.FORK:
            self.machine.note(f"has another log {frame.header.epoch[-4:]} of {message.gateway} than the cloud")
            self._site.ask_now(now_ms)

    @staticmethod
    def _book(message: SiteFrame, frame: frames.Frame) -> Generator[Callable[[Ledger], Any], Any, Verdict]:
        verdict: Verdict = yield lambda ledger: SiteBook(ledger).receive(message, frame)
        return verdict

    def _answered(self, message: SiteHeads, now_ms: int) -> Steps:
        connection, heads = self.machine.ledger.connection, message.heads
        self.complete = not message.more and recovery.fetched(connection, heads)
        self._site.answered(now_ms, more=message.more)
        if not self.complete:
            self._site.gap(now_ms)
        elif self.forked:
            yield from self._recover(heads, now_ms)
        else:
            yield from self._compare(heads, now_ms)

    def _compare(self, heads: Sequence[LogCursor], now_ms: int) -> Steps:
        connection = self.machine.ledger.connection
        lost, unlike = recovery.lost_by_cloud(connection, heads), unlike_cloud(connection, heads)
        if not lost and not unlike:
            self._lost_since_ms = None
        elif self._lost_since_ms is None:
            self._lost_since_ms = now_ms
        elif now_ms - self._lost_since_ms < self.machine.settings.lost_log_wait_s * 1_000:
            return
        elif lost:
            yield from self._fork("ledger", "the cloud has lost entries of an older log of this gateway")
        else:
            self.machine.note(f"fetches {len(unlike)} logs anew")
            yield lambda ledger: SiteBook(ledger).forget(*unlike)
            self._lost_since_ms = None
            self._site.ask_now(now_ms)

    # --- forks --------------------------------------------------------------------------------------------------

    @property
    def forked(self) -> bool:
        """Whether a stream is stopped."""
        return any(lane.sender.forked for lane in self.lanes.values())

    def _fork(self, stream: Stream, reason: str) -> Steps:
        self.lanes[stream].sender.forked = reason
        self._tell_fork(stream, reason)
        yield partial(notes.fork, stream, reason)
        self._site.ask_now(self._now_ms())

    def _tell_fork(self, stream: Stream, reason: str) -> None:
        self.machine.note(f"stops {stream}: {reason}")
        self.world.checks.forked(self.machine, reason)

    def _recover(self, heads: Sequence[LogCursor], now_ms: int) -> Steps:
        step = recovery.next_step(self.machine.ledger.connection, heads)
        if step is not None:
            self.machine.note(f"stages its own log {step}")
            yield lambda ledger: Recovery(ledger).stage(from_start=step == "from start")
            self._site.ask_now(now_ms)
            return
        for lane in self.lanes.values():
            lane.sender.disconnected()
        opened: recovery.Opened = yield lambda ledger: Recovery(ledger).open_epoch(heads)
        self.machine.note(f"opens epoch {opened.epoch[-4:]}, carries {opened.carried}, known {opened.known}")
        self.world.checks.opened(self.machine)
        raise EpochOpened

    def _ask(self) -> None:
        if self._site.due(self._now_ms()):
            logs = recovery.fetching(self.machine.ledger.connection)
            own = None if self.asks_own(logs) else self.epoch
            ask = SiteAsk(own=own, logs=tuple(logs[:SITE_LOGS_MAX]))
            self.publish(topics.link(self.machine.gateway, Channel.SITE_ASK), ask.encode())

    def asks_own(self, logs: Sequence[LogCursor]) -> bool:
        """Whether its own log is wanted: only while it is staged."""
        return any((log.gateway, log.epoch) == (self.machine.gateway, self.epoch) for log in logs)

    # --- up -----------------------------------------------------------------------------------------------------

    def _carry_out(self, lane: Lane, effects: list[Effect]) -> Steps:
        stream = lane.sender.stream
        while effects:
            effect = effects.pop(0)
            match effect:
                case Send(frame):
                    self._send(lane, frame)
                case Seal(entries_max):
                    effects += yield from self._seal(lane, entries_max)
                case Acked(frame):
                    yield partial(notes.acked, stream, frame)
                case SteppedBack(frame):
                    self.machine.note(f"steps back to {stream} frame {frame}")
                    yield partial(notes.step_back, stream, frame)
                case Forked(reason):
                    yield from self._fork(stream, reason)
        self.world.checks.in_flight(self.machine.name, lane.sender)

    def _send(self, lane: Lane, frame: int) -> None:
        stream = lane.sender.stream
        body = outbox.body(self.machine.ledger.connection, stream, frame)
        if body is None:
            reason = f"the cloud wants frame {frame}, which is no longer kept here"
            lane.sender.forked = reason
            self._tell_fork(stream, reason)
            self.machine.submit(partial(notes.fork, stream, reason), lambda _: None, lambda: None)
            self._site.ask_now(self._now_ms())
            return
        self.machine.at_brink("before it sends a frame")
        self.machine.note(f"sends {stream} frame {frame}")
        self.publish(topics.up(self.machine.gateway, stream), body)

    def _seal(self, lane: Lane, entries_max: int) -> Generator[Callable[[Ledger], Any], Any, list[Effect]]:
        stream, contact_ms = lane.sender.stream, self._contact_ms
        sealed: outbox.Sealed | None = yield lambda ledger: Outbox(ledger).seal(
            stream, entries_max, contact_mono_ms=contact_ms
        )
        at = outbox.position(self.machine.ledger.connection, stream)
        lane.source_id, lane.waiting_since_ms = at.source_id, None
        boot, waited_ms = self.machine.clock.boot, self._now_ms() - contact_ms
        if waited_ms >= TIME_WAIT_MS and not outbox.time_known(self.machine.ledger.connection, boot):
            self.world.checks.untimed(boot)
        if sealed is None:
            return lane.sender.nothing_sealed()
        self.machine.note(f"seals {stream} frame {sealed.frame}, {sealed.entries} entries")
        return lane.sender.sealed(sealed.frame, sealed.waiting, self._now_ms())

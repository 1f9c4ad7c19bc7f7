"""The uplink of a virtual machine: production's shipping, with a virtual link instead of aiomqtt's."""

from collections import deque
from collections.abc import Callable
from typing import Final

from edge_agent.ledger.recovery import Opened
from edge_agent.link.shipping import TIME_WAIT_MS
from simulation.edge import noted, tasks
from simulation.edge.host import Host
from simulation.edge.noted import NotedShipping, NotedSiteSync, decoded
from simulation.edge.tasks import Task, Written
from wire_protocol import topics
from wire_protocol.errors import WireError
from wire_protocol.messages import Ack
from wire_protocol.replication import SenderLimits
from wire_protocol.site_messages import unpack
from wire_protocol.topics import Channel, Stream

DRAIN_ENTRIES_MAX: Final = 12
RECONNECT_MS_MAX: Final = 20_000
STATUS_MS: Final = 1_200_000


class VirtualUplink:
    """One machine's link to the cloud; `online` from the moment its broker answered."""

    def __init__(self, machine: Host) -> None:
        self.machine, self.world = machine, machine.world
        self.online = False
        self.publish: Callable[[str, bytes], None] = lambda _topic, _payload: None
        self.will: Callable[[], None] = lambda: None
        self.joined: Callable[[], None] = lambda: None
        self._contact = 0
        self._incoming: deque[tuple[Channel, bytes]] = deque()
        self._receiving = self._pumping = self._awake = False
        self._alarm_ms: int | None = None
        self._rng = machine.world.rng(f"{machine.name}.uplink")
        self.begin()

    @property
    def epoch(self) -> str:
        """The log that the contact is about."""
        return self.shipping.epoch

    # --- contacts -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The agent's process begins; nothing is remembered."""
        machine, ledger = self.machine, self.machine.ledger
        site = NotedSiteSync(
            machine.gateway, ledger.connection, Written, machine.settings, machine.clock.mono_ms, decoded
        )
        self.shipping = NotedShipping(
            gateway=machine.gateway,
            epoch=ledger.epoch,
            reader=ledger.connection,
            write=Written,
            limits=self._limits,
            settings=machine.settings,
            clock=machine.clock,
            site=site,
            jitter=lambda: self._rng.uniform(0.75, 1.25),
        )
        site.machine = self.shipping.machine = machine

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
        self.shipping.site.timer.disconnected()

    def _connect(self) -> None:
        machine = self.machine
        if self.online or machine.name in machine.network.cut:
            return
        if machine.writes_wait():
            self.connect_soon()  # production is still in the contact before, waiting for its write
            return
        self._contact += 1
        self.online, self._alarm_ms = True, None
        self.shipping.connected(machine.ledger.epoch, self._put)
        machine.note(f"is online in epoch {self.epoch[-4:]}")
        self.joined()
        self._report(self._contact, arrived=True)
        machine.later(TIME_WAIT_MS, self.wake)
        self._pumping = True
        self._run(self._pump(connected=True), self._pumped)

    def _limits(self) -> SenderLimits:
        settings = self.machine.settings
        return SenderLimits(
            window_frames_max=settings.window_frames_max,
            live_entries_max=settings.frame_entries_max,
            drain_entries_max=DRAIN_ENTRIES_MAX,
        )

    def _report(self, contact: int, *, arrived: bool = False) -> None:
        """Announce, and go on doing so while this contact lasts."""
        if not self.online or contact != self._contact:
            return
        machine = self.machine
        status = noted.status(machine.ledger, arrived=arrived)
        self.publish(topics.link(machine.gateway, Channel.STATUS), status.encode())
        machine.later(STATUS_MS, lambda: self._report(contact))

    # --- tasks --------------------------------------------------------------------------------------------------

    def _run(self, task: Task, ended: Callable[[], None]) -> None:
        """Run a task of this contact."""
        contact = self._contact
        tasks.run(self.machine, task, ended, self._epoch_opened, lambda: contact == self._contact)

    def _epoch_opened(self, opened: Opened) -> None:
        self.machine.note(f"opens epoch {opened.epoch[-4:]}, carries {opened.carried}, known {opened.known}")
        self.world.checks.opened(self.machine)
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
        self.shipping.site.timer.poll_now(self.machine.clock.mono_ms())
        self.wake()

    async def _pump(self, *, connected: bool = False) -> None:
        if connected:
            await self.shipping.begin()
        self._awake = True
        while self._awake:
            self._awake = False
            await self.shipping.look()
            self._ask()

    def _pumped(self) -> None:
        self._pumping = False
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Wake at the next deadline."""
        deadline_ms = self.shipping.next_deadline_ms()
        if deadline_ms is None or not self.online:
            return
        at_ms = self.world.now_ms + max(1, deadline_ms - self.machine.clock.mono_ms())
        if self._alarm_ms is not None and self.world.now_ms < self._alarm_ms <= at_ms:
            return
        self._alarm_ms, contact = at_ms, self._contact

        def ring() -> None:
            if contact == self._contact:
                self._alarm_ms = None
                self.wake()

        self.machine.later(at_ms - self.world.now_ms, ring)

    def _ask(self) -> None:
        question = self.shipping.site.question()
        if question is not None:
            self.publish(topics.link(self.machine.gateway, Channel.SITE_REQUEST), question.encode())

    def _put(self, stream: Stream, frame: int, body: bytes) -> None:
        """Part of `Shipping`."""
        self.machine.crash_point("before it sends a frame")
        self.machine.note(f"sends {stream} frame {frame}")
        self.publish(topics.up(self.machine.gateway, stream), body)

    # --- down ---------------------------------------------------------------------------------------------------

    def receive(self, channel: Channel, payload: bytes) -> None:
        """A payload from the cloud."""
        if not self.online:
            return
        self._incoming.append((channel, payload))
        if not self._receiving:
            self._receiving = True
            self.machine.guarded(lambda: self._run(self._receive(), self._received))

    async def _receive(self) -> None:
        while self._incoming:
            channel, payload = self._incoming.popleft()
            try:
                if channel is Channel.ACK:
                    await self.shipping.acknowledged(Ack.decode(payload))
                else:
                    for piece in unpack(payload):
                        await self.shipping.passed_down(piece)
            except WireError:
                self.machine.note("cannot read a message of the cloud")

    def _received(self) -> None:
        self._receiving = False
        self.wake()

"""A gateway: the production ledger, group commit, outbox and upkeep, on virtual time and a virtual disk.

What is written again here is only what production does in threads and with `await`: the queue before the writer, the
receipts after the commit.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, TypeVar

from edge_agent import database, letters, upkeep
from edge_agent.drafts import Draft, ReadingDraft
from edge_agent.errors import BadInput, LedgerFull
from edge_agent.ledger import Ledger
from edge_agent.settings import EdgeSettings
from edge_agent.writer import Append, Job, LedgerWriter, Work
from stocktide.universe.devices import Device
from stocktide.universe.disk import Disk
from stocktide.universe.network import Network
from stocktide.universe.steps import HOUR_MS
from stocktide.universe.uplink import VirtualUplink
from stocktide.universe.world import Process, World
from wire_protocol import names
from wire_protocol.errors import WireError
from wire_protocol.messages import DeviceReceipt

T = TypeVar("T")

COMMIT_DELAY_MS: Final = 5
FULL_RETRY_MS: Final = 10_000
QUEUE_EVENTS_MAX: Final = 100
BATCH_EVENTS_MAX: Final = 50
UPKEEP_MS: Final = HOUR_MS // 2
DOWN_MS_MAX: Final = HOUR_MS // 2
KEEP_S: Final = 5 * 3_600


def settings() -> EdgeSettings:
    """Production's settings with small bounds, so that small universes reach them; the environment is not asked."""
    return EdgeSettings.model_construct(
        ledger=Path("virtual"), window_frames_max=4, frame_entries_max=4, frame_keep_s=KEEP_S, readings_max=1_000
    )


class VirtualClock:
    """A gateway's clock: right until it steps, and a new boot after each power cut."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name
        self.skew_ms = 0
        self.boot = ""
        self._since_ms = 0
        self.reboot()

    def reboot(self) -> None:
        """The monotonic clock starts anew."""
        self._since_ms = self._world.now_ms
        self.boot = names.ulid(self._world.now_ms, self._world.rng(f"{self._name}.boot").randbytes(10))

    def now_ms(self) -> int:
        return max(0, self._world.now_ms + self.skew_ms)

    def mono_ms(self) -> int:
        return self._world.now_ms - self._since_ms


class SteadyClock:
    """A gateway's clock as it would be if nobody could set it: true time since the first boot.

    Retention and the senders' timers use it here. Production uses the wall clock for both, which the simulator found
    to be wrong (see `findings`).
    """

    def __init__(self, world: World, clock: VirtualClock) -> None:
        self._world, self._clock = world, clock

    @property
    def boot(self) -> str:
        """The boot of the clock it stands for."""
        return self._clock.boot

    @boot.setter
    def boot(self, boot: str) -> None:
        raise AttributeError(boot)

    def now_ms(self) -> int:
        return self._world.now_ms

    def mono_ms(self) -> int:
        return self._clock.mono_ms()


class VirtualWriter(LedgerWriter):
    """Production's group commit, without its thread."""

    def attempt(self, ledger: Ledger, batch: list[Work]) -> list[tuple[Job, Any]]:
        """Commit a batch in one transaction."""
        return self._attempt(ledger, batch)


class Gateway(Process):
    """The agent of one gateway through all its lives; `disk` is what survives them."""

    def __init__(self, world: World, network: Network, name: str, site: int, epoch: str) -> None:
        super().__init__(world, name)
        self.site, self.network = site, network
        self.disk = Disk(name, epoch)
        self.clock = VirtualClock(world, name)
        self.ledger = self.disk.ledger(self.clock)
        self.steady_ledger = self.disk.ledger(SteadyClock(world, self.clock))
        self.settings = settings()
        self.writer = VirtualWriter(lambda: nullcontext(self.ledger), committed=lambda _: None)
        self.uplink = VirtualUplink(self)
        self.devices: dict[str, Device] = {}
        self._queue: list[Append] = []
        self._committing = False
        self.power_on()

    def power_on(self) -> None:
        """Boot."""
        if self.alive:
            return
        self.alive = True
        self.clock.reboot()
        self.note("powers on")
        self.later(UPKEEP_MS, self._upkeep)
        self.uplink.connect_soon()

    def die(self) -> None:
        """The power is cut: memory is gone, the disk keeps what was committed."""
        super().die()
        self.disk.power_off()
        self.uplink.lose_link()
        self._queue.clear()
        self._committing = False
        self.note("is without power")
        down_ms = self.world.rng(f"{self.name}.down").randint(2_000, DOWN_MS_MAX)
        self.world.schedule.after(down_ms, self.power_on)

    def at_brink(self, where: str) -> None:
        """Perhaps the power is cut here."""
        self.brink(where, self.world.weather.gateway_dies)

    def sender_ms(self) -> int:
        """The time the senders are told."""
        return self.world.now_ms

    def shipping_ledger(self) -> Ledger:
        """The ledger as the outbox and upkeep see it."""
        return self.steady_ledger

    # --- devices ------------------------------------------------------------------------------------------------

    def message(self, topic: str, payload: bytes) -> None:
        """A device's message; what cannot be read gets no receipt and so comes again."""
        if not self.alive or len(self._queue) >= QUEUE_EVENTS_MAX:
            return
        try:
            made = letters.redraft(topic, payload)
        except (WireError, BadInput):
            self.note("cannot read a device's message")
            return
        self.guarded(lambda: self.take(made))

    def take(self, made: Draft | ReadingDraft) -> None:
        """Queue a draft for the next commit."""
        self._queue.append(Append(made, None))
        if not self._committing:
            self._committing = True
            self.later(COMMIT_DELAY_MS, self._commit)

    def _commit(self) -> None:
        batch = self._queue[:BATCH_EVENTS_MAX]
        work: list[Work] = [*batch, Job(lambda _: self.at_brink("before its commit"))]
        try:
            self.writer.attempt(self.ledger, work)
        except LedgerFull:
            self.note(f"has no room for {len(batch)} events")
            self.later(FULL_RETRY_MS, self._commit)
            return
        del self._queue[: len(batch)]
        self._committing = bool(self._queue)
        self.note(f"commits {sum(1 for append in batch if append.outcome is not None)} of {len(batch)} events")
        if self._queue:
            self.later(COMMIT_DELAY_MS, self._commit)
        self.world.checks.committed(self)
        self.at_brink("after its commit")
        self.settle(batch)
        self.uplink.wake()

    def settle(self, batch: list[Append]) -> None:
        """Tell the devices what is durable."""
        events: defaultdict[str, list[str]] = defaultdict(list)
        for append in batch:
            assert append.draft.device is not None  # noqa: S101 - every draft here came from a device
            assert append.draft.event is not None  # noqa: S101 - as above
            events[append.draft.device].append(append.draft.event)
            if isinstance(append.draft, Draft):
                self.world.checks.receipted(self.name, append.draft.device, append.draft.event)
        for device, ids in events.items():
            self.network.send(
                f"{device}.down", DeviceReceipt(committed=tuple(ids)).encode(), self.devices[device].receive
            )

    # --- writes of the uplink and upkeep ------------------------------------------------------------------------

    def write(self, run: Callable[[Ledger], T]) -> T:
        """One durable write.

        Raises:
            LedgerFull: there is no room; nothing was written.
        """
        with database.transaction(self.ledger.connection):
            result = run(self.shipping_ledger())
            self.at_brink("before a commit of the uplink")
        self.at_brink("after a commit of the uplink")
        return result

    def _upkeep(self) -> None:
        self.later(UPKEEP_MS, self._upkeep)
        try:
            done = self.write(lambda ledger: upkeep.upkeep(ledger, self.settings))
        except LedgerFull:
            return
        if forgotten := done["frames_forgotten"]:
            self.note(f"forgets {forgotten} frames")

    def step_clock(self, by_ms: int) -> None:
        """Somebody sets the clock."""
        self.clock.skew_ms += by_ms
        self.note(f"has its clock set by {by_ms / 1000:+,.0f} s")
        if self.alive:
            self.guarded(self.uplink.wake)

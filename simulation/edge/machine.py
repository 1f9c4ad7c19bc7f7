"""A machine that runs as a gateway: the production ledger, group commit, outbox and upkeep, on virtual time and disk.

Several machines may bear one gateway's name: a clone of its disk, or its replacement and the old one plugged in again.

What is written again here is only what production does in threads and with `await`: the queue before the writer, the
receipts after the commit.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloud_store.merge.arrivals import LogKey
from edge_agent.devices import dead_letters
from edge_agent.errors import BadInput, LedgerFull
from edge_agent.ledger import database
from edge_agent.ledger.clock import instant
from edge_agent.ledger.drafts import Draft, ReadingDraft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.site_logs import SiteLogWriter, log_row
from edge_agent.ledger.writer import Append, Job, LedgerWriter, Work
from edge_agent.provisioning import retention
from edge_agent.settings import EdgeSettings
from simulation.disk import Disk
from simulation.edge.clocks import VirtualClock
from simulation.edge.devices import SimulatedHandheld, technician
from simulation.edge.tasks import Run
from simulation.edge.uplink import VirtualUplink
from simulation.fault_rates import CALM
from simulation.network import Network
from simulation.steps import HOUR_MS
from simulation.world import Process, World
from wire_protocol.errors import WireError
from wire_protocol.messages import DeviceReceipt

COMMIT_DELAY_MS: Final = 5
FULL_RETRY_MS: Final = 10_000
QUEUE_EVENTS_MAX: Final = 100
BATCH_JOBS_MAX: Final = 50
UPKEEP_MS: Final = HOUR_MS // 2
DOWN_MS_MAX: Final = HOUR_MS // 2
TRIED_SHARE: Final = 0.4
TRIED_AFTER_MS: Final = (5_000, 150_000)
REBOOT_SHARE: Final = 0.7
KEEP_S: Final = 5 * 3_600
TICK_MS: Final = 200


def settings() -> EdgeSettings:
    """Production's settings with small bounds, so that small universes reach them; the environment is not asked."""
    return EdgeSettings.model_construct(
        ledger=Path("virtual"),
        window_frames_max=4,
        frame_entries_max=4,
        frame_keep_s=KEEP_S,
        readings_max=1_000,
        site_ask_interval_s=600.0,
        lost_log_wait_s=900.0,
    )


class VirtualWriter(LedgerWriter):
    """Production's group commit, without its thread."""

    def attempt(self, ledger: Ledger, batch: list[Work]) -> list[tuple[Job, Any]]:
        """Commit a batch in one transaction."""
        return self._attempt(ledger, batch)


@dataclass(slots=True)
class Submitted:
    """A write that somebody has asked for: whom to tell when it is committed, and whom when there is no room."""

    job: Job
    done: Callable[[Any], None]
    full: Callable[[], None]


class Machine(Process):
    """The agent of one gateway through all its lives on one machine; `disk` is what survives them."""

    def __init__(self, world: World, network: Network, name: str, disk: Disk, site: int) -> None:
        super().__init__(world, name)
        self.gateway, self.site, self.network, self.disk = disk.gateway, site, network, disk
        self.clock = VirtualClock(world, name)
        self.ledger = disk.ledger(self.clock)
        self.settings = settings()
        self.writer = VirtualWriter(lambda: nullcontext(self.ledger), committed=lambda _: None)
        self.uplink = VirtualUplink(self)
        self.devices: dict[str, SimulatedHandheld] = {}
        self.retired = False
        self._rebooting = True
        self.doom: Callable[[], None] | None = None  # what happens right after its next commit, before any receipt
        self._queue: list[Append | Submitted] = []
        self._committing = False

    def power_on(self) -> None:
        """Boot."""
        if self.alive or self.retired:
            return
        self.alive = True
        if self._rebooting:
            self.clock.reboot()
        self.ledger = self.disk.ledger(self.clock)
        self.note("powers on")
        self.later(UPKEEP_MS, self._upkeep)
        self.uplink.begin()
        self.uplink.connect_soon()
        self._try_out()

    def _try_out(self) -> None:
        """The person who has switched a machine on scans something, before it has a link and a minute or two later."""
        rng = self.world.rng(f"{self.name}.down")
        for at_ms in TRIED_AFTER_MS:
            if self.devices and self.world.fault_rates is not CALM and rng.random() < TRIED_SHARE:
                self.later(rng.randint(at_ms // 10, at_ms), rng.choice(list(self.devices.values())).scan)

    def die(self) -> None:
        """The power is cut, or the process is killed: memory is gone, the disk keeps what was committed."""
        super().die()
        self._rebooting = self.world.rng(f"{self.name}.down").random() < REBOOT_SHARE
        self.disk.power_off()
        self.uplink.lose_link()
        self._queue.clear()
        self._committing = False
        self.note("is without power" if self._rebooting else "is killed")
        down_ms = self.world.rng(f"{self.name}.down").randint(2_000, DOWN_MS_MAX)
        self.world.schedule.after(down_ms, self.power_on)

    def replace_disk(self, disk: Disk) -> None:
        """Another disk is put in; the machine is off."""
        assert not self.alive  # noqa: S101 - a mistake of the simulator
        self.disk.close()
        self.disk, self.ledger = disk, disk.ledger(self.clock)

    def crash_point(self, where: str) -> None:
        """Perhaps the power is cut here."""
        self.may_crash(where, self.world.fault_rates.gateway_dies)

    def fetch_anew(self, log: LogKey) -> None:
        """An operator whom an alarm has told that stock differs has a log of another machine fetched again."""
        row = log_row(self.disk.connection, log.gateway, log.epoch)
        if row is not None:
            self.note(f"is made to fetch log {log.gateway} {log.epoch[-4:]} again")
            self.submit(
                lambda ledger: SiteLogWriter(ledger).forget(row.log), lambda _: self.uplink.ask_soon(), lambda: None
            )

    # --- devices and technicians --------------------------------------------------------------------------------

    def message(self, topic: str, payload: bytes) -> None:
        """A device's message; what cannot be read gets no receipt and so comes again."""
        if not self.alive or len(self._queue) >= QUEUE_EVENTS_MAX:
            return
        try:
            made = dead_letters.redraft(topic, payload, instant(self.clock))
        except (WireError, BadInput):
            self.note("cannot read a device's message")
            return
        self.guarded(lambda: self.take(made))

    def take(self, made: Draft | ReadingDraft) -> None:
        """Queue a draft for the next commit."""
        self._enqueue(Append(made, None))

    def book(self) -> None:
        """A technician books something from the command line: a process of its own, which no device stands behind."""
        if self.alive:
            self.guarded(self._book)

    def _book(self) -> None:
        made = technician(self.world, self.gateway)
        ledger = self.disk.ledger(self.clock)
        try:
            with database.transaction(ledger.connection):
                ledger.append([made])
                self.crash_point("while a technician books")
        except LedgerFull:
            return
        self.note(f"has a technician who books {made.reference}")
        self.world.checks.booked(self.gateway, made)
        self.world.checks.committed(self)
        self.later(TICK_MS, self.uplink.wake)

    # --- the writer ---------------------------------------------------------------------------------------------

    def submit(self, run: Run, done: Callable[[Any], None], full: Callable[[], None]) -> None:
        """Queue any other write."""
        self._enqueue(Submitted(Job(run), done, full))

    def writes_wait(self) -> bool:
        """Whether writes other than events are queued; a contact does not end before its own are done."""
        return any(isinstance(work, Submitted) for work in self._queue)

    def _enqueue(self, work: Append | Submitted) -> None:
        self._queue.append(work)
        if not self._committing:
            self._committing = True
            self.later(COMMIT_DELAY_MS, self._commit)

    def _commit(self) -> None:
        batch = self._queue[:BATCH_JOBS_MAX]
        jobs = [work for work in batch if isinstance(work, Submitted)]
        appends = [work for work in batch if isinstance(work, Append)]
        work: list[Work] = [
            *appends,
            *(each.job for each in jobs),
            Job(lambda _: self.crash_point("before its commit")),
        ]
        try:
            results = self.writer.attempt(self.ledger, work)
        except LedgerFull:
            self._hold(batch, appends, jobs)
            return
        del self._queue[: len(batch)]
        self._committing = bool(self._queue)
        if self._queue:
            self.later(COMMIT_DELAY_MS, self._commit)
        if appends:
            new = sum(1 for append in appends if append.outcome is not None)
            self.note(f"commits {new} of {len(appends)} events")
        self.world.checks.committed(self)
        if appends and self.doom is not None:
            doom, self.doom = self.doom, None
            self.die()
            doom()
            return
        self.crash_point("after its commit")
        self.settle(appends)
        for each, (_, result) in zip(jobs, results, strict=False):
            each.done(result)
        if appends:
            self.uplink.wake()

    def _hold(self, batch: list[Append | Submitted], appends: list[Append], jobs: list[Submitted]) -> None:
        """No room on the disk: events wait, other jobs fail at once."""
        self.note(f"has no room for {len(appends)} events and {len(jobs)} other writes")
        self._queue[: len(batch)] = appends
        self._committing = bool(self._queue)
        if self._queue:
            self.later(FULL_RETRY_MS, self._commit)
        for each in jobs:
            each.full()

    def settle(self, batch: list[Append]) -> None:
        """Tell the devices what is durable."""
        events: defaultdict[str, list[str]] = defaultdict(list)
        for append in batch:
            assert append.draft.device is not None  # noqa: S101 - every draft here came from a device
            assert append.draft.event is not None  # noqa: S101 - as above
            if append.draft.device not in self.devices:
                continue  # it speaks to another machine by now
            events[append.draft.device].append(append.draft.event)
            if isinstance(append.draft, Draft):
                self.world.checks.receipted(self, append.draft.device, append.draft.event)
        for device, ids in events.items():
            self.network.send(
                f"{device}.down", DeviceReceipt(committed=tuple(ids)).encode(), self.devices[device].receive
            )

    def _upkeep(self) -> None:
        self.later(UPKEEP_MS, self._upkeep)
        self.submit(lambda ledger: retention.upkeep(ledger, self.settings), self._kept_up, lambda: None)

    def _kept_up(self, done: dict[str, int]) -> None:
        if forgotten := done["frames_forgotten"]:
            self.note(f"forgets {forgotten} frames")

    def step_clock(self) -> None:
        """Somebody sets the clock."""
        by_ms = self.clock.step()
        self.note("has its clock set right" if by_ms is None else f"has its clock set by {by_ms / 1000:+,.0f} s")
        if self.alive:
            self.guarded(self.uplink.wake)

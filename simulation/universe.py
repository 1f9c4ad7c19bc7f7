"""One universe: built from a seed, lived through, healed, and looked at.

Invariant: the seed, the size and the planted bug determine every line of the trace.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from cloud_store.base.gateways import Gateway as RegisteredGateway
from cloud_store.base.leases import Survey
from simulation import final_checks
from simulation.checks import Checks, Violation
from simulation.cloud.worker import SimWorker
from simulation.disk import Disk, Happened
from simulation.edge.devices import SimulatedHandheld
from simulation.edge.machine import Machine
from simulation.fault_rates import CALM, draw
from simulation.network import Network
from simulation.steps import HOUR_MS, START_MS, Schedule, Trace
from simulation.store import Store
from simulation.world import World
from wire_protocol import names, topics
from wire_protocol.messages import GatewayStatus
from wire_protocol.topics import Channel

DEVICES: Final = 2
WORKERS: Final = 2
GATEWAYS_PER_SITE: Final = 2
BURST_EVENTS: Final = 4
BURST_GAP_MS_MAX: Final = 4_000
SETTLE_MS: Final = 90 * 60_000
LOOK_MS: Final = 60_000
LAST_BURST_MS: Final = 300
LAST_BURST_SHARE: Final = 0.5
LAST_FAILOVER_SHARE: Final = 0.5
LAST_FAILOVER_COMMITS_MAX: Final = 12
TECHNICIAN_SHARE: Final = 0.12
THROWN_OFF_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    gateways: int = 3
    hours: float = 24.0
    events_per_hour: float = 12.0


class FaultSource(Protocol):
    """What goes wrong at large, for as long as the universe is stormy; `chaos.Chaos` is one."""

    def start(self) -> None:
        """Plan the first faults."""

    def end(self) -> None:
        """Bring back what was to come back."""


class Universe:
    """Gateways with their devices, a broker, workers and a database."""

    def __init__(
        self,
        seed: int,
        size: Size,
        faults: Callable[["Universe"], FaultSource],
        echo: Callable[[str], None] | None = None,
    ) -> None:
        schedule = Schedule()
        self.size, self.checks, self.stormy = size, Checks(), True
        self.world = World(seed=seed, schedule=schedule, trace=Trace(schedule, echo), checks=self.checks)
        self.world.fault_rates = draw(self.world.rng("weather"))
        self.network, self.store = Network(self.world), Store()
        self.shipped: set[Happened] = set()
        self._rng = self.world.rng("people")
        self._deaf: set[str] = set()
        self._sessions: dict[str, Machine] = {}
        self._named: Counter[str] = Counter()
        self.machines: dict[str, Machine] = {}
        self.checks.machines = self.machines
        self.workers: list[SimWorker] = []
        names_ = [f"gw-{number + 1}" for number in range(size.gateways)]
        self.registry = {
            name: RegisteredGateway(number, name, 1, (number - 1) // GATEWAYS_PER_SITE, active=True)
            for number, name in enumerate(names_, 1)
        }
        for name, registered in self.registry.items():
            self.equip(self.add_machine(self.empty_disk(name), registered.site_id))
        self.workers += [SimWorker(self.world, self, f"worker-{number + 1}") for number in range(WORKERS)]
        self._faults = faults(self)

    # --- machines -----------------------------------------------------------------------------------------------

    def epoch(self) -> str:
        """A new epoch's name."""
        return names.ulid(self.world.now_ms, self.world.rng("epochs").randbytes(10))

    def empty_disk(self, gateway: str) -> Disk:
        """What `stocktide edge init` leaves behind."""
        return Disk.initialised(gateway, self.epoch())

    def add_machine(self, disk: Disk, site: int) -> Machine:
        """A machine that runs as a gateway, from now on; the second of a gateway is called b, the third c, and so on.

        Names are never given twice.
        """
        count = self._named[disk.gateway] = self._named[disk.gateway] + 1
        name = disk.gateway if count == 1 else f"{disk.gateway}{'abcdefghijklmnopqrstuvwxyz'[count - 1]}"
        machine = self.machines[name] = Machine(self.world, self.network, name, disk, site)
        machine.uplink.publish = lambda topic, payload: self.network.send(
            f"{name}.link", payload, lambda arrived: self._route(topic, arrived), over=name
        )
        machine.uplink.will = lambda: self._last_will(machine)
        machine.uplink.joined = lambda: self._joined(machine)
        machine.power_on()
        return machine

    def equip(self, machine: Machine) -> None:
        """Give a machine devices of its own, and people who use them."""
        for number in range(DEVICES):
            device = SimulatedHandheld(self.world, self.network, machine, f"{machine.name}-d{number + 1}")
            machine.devices[device.name] = device

    def remove_machine(self, machine: Machine) -> None:
        """A machine is gone for good, with its disk."""
        del self.machines[machine.name]
        machine.disk.close()

    # --- the broker ---------------------------------------------------------------------------------------------

    def _route(self, topic: str, payload: bytes) -> None:
        """The broker hands a message to whoever has subscribed to its shard."""
        parsed = topics.parse(topic)
        assert isinstance(parsed, topics.LinkTopic)  # noqa: S101 - gateways publish nothing else
        shard = topics.shard(parsed.gateway)
        # A worker that has just lost a lease may still be subscribed, so at times both hear.
        both = self.world.happens("overlap", self.world.fault_rates.duplicate)
        for worker in self.workers:
            if worker.alive and (both or shard in worker.shards) and worker.name not in self._deaf:
                worker.guarded(partial(worker.hear, topic, payload))

    def _last_will(self, machine: Machine) -> None:
        status = GatewayStatus(state="offline", epoch=machine.uplink.epoch, version="virtual")
        self._route(topics.link(machine.gateway, Channel.STATUS), status.encode())

    def _joined(self, machine: Machine) -> None:
        """A machine has connected: the broker throws out who was there under the same client id."""
        client = f"{machine.gateway}-{machine.uplink.epoch[-8:]}"
        other = self._sessions.get(client)
        self._sessions[client] = machine
        if other is None or other is machine or not other.alive or not other.uplink.online:
            return
        if other.uplink.epoch == machine.uplink.epoch:
            other.note(f"is thrown off the broker by {machine.name}")
            other.uplink.lose_link()
            other.uplink.connect_soon(THROWN_OFF_MS)

    def publish(self, gateway: str, channel: Channel, payload: bytes) -> None:
        """A worker publishes on one of a gateway's topics; every machine of that name has subscribed."""
        for machine in self.machines.values():
            if machine.gateway == gateway and machine.alive and machine.uplink.online:
                self.network.send(
                    f"{machine.name}.cloud", payload, partial(machine.uplink.receive, channel), over=machine.name
                )

    def survey(self, worker: SimWorker) -> Survey:
        """The leases as the database sees them."""
        others: set[int] = set()
        for other in self.workers:
            if other is not worker:
                others |= other.shards
        live = sum(1 for each in self.workers if each.alive)
        return Survey(live, worker.shards, frozenset(others))

    def wipe_broker(self) -> None:
        """The cloud's broker restarts empty; everybody connects and subscribes again."""
        self.world.trace("broker", "restarts empty")
        self.network.wipe()
        for machine in list(self.machines.values()):
            self.notice(machine)
        for worker in self.workers:
            self._deaf.add(worker.name)
            self.world.schedule.after(self._rng.randint(100, 20_000), partial(self._hear_again, worker))

    def _hear_again(self, worker: SimWorker) -> None:
        self._deaf.discard(worker.name)
        if worker.alive:
            worker.resubscribed()

    @staticmethod
    def notice(machine: Machine) -> None:
        """A machine notices that its link is gone."""
        if machine.alive and machine.uplink.online:
            machine.uplink.lose_link()
            machine.uplink.connect_soon()

    def heal_link(self, machine: Machine) -> None:
        """The link is back."""
        if machine.name in self.network.cut:
            machine.note("has a link again")
            self.network.cut.discard(machine.name)
            if machine.alive:
                machine.uplink.connect_soon()

    # --- the database -------------------------------------------------------------------------------------------

    def lose_database(self) -> None:
        """The database is away."""
        self.world.trace("database", "is away")
        self.store.away = True
        self.store.session += 1
        for worker in self.workers:
            worker.session_lost()

    def heal_database(self) -> None:
        """It is back, with everything it had."""
        if self.store.away:
            self.world.trace("database", "is back")
            self.store.away = False

    def fail_over(self, commits: int) -> None:
        """A replica takes over that lacks the last commits."""
        lacked = self.store.fail_over(commits)
        self.checks.fell_back |= lacked > 0
        gone = self.checks.destroyed(self.store, self.shipped, "a disk was destroyed, and a replica lacked it")
        more = f"; {gone} entries were nowhere else" if gone else ""
        self.world.trace("database", f"fails over to a replica that lacks {lacked} commits{more}")
        for worker in self.workers:
            worker.session_lost()

    # --- life ---------------------------------------------------------------------------------------------------

    def live(self) -> None:
        """Live through the storm, heal, settle, and look at everything.

        Raises:
            Violation: an invariant does not hold.
        """
        for name in self.registry:
            self._plan_burst(name)
            # Half of them scan in the storm's last second: what that loses, only the calm can bring. The others keep
            # still: what the cloud has lost of theirs, it must ask for.
            last_ms = round(self.size.hours * HOUR_MS) - LAST_BURST_MS
            if self._rng.random() < LAST_BURST_SHARE:
                self.world.schedule.after(last_ms, partial(self._scan_all, name))
        self._faults.start()
        self.world.schedule.run_until(START_MS + round(self.size.hours * HOUR_MS))
        self._heal()
        self._settle()
        final_checks.finish(self.checks, self.machines, self.store)

    def _plan_burst(self, gateway: str) -> None:
        rate_per_h = self.size.events_per_hour / BURST_EVENTS
        self.world.schedule.after(self._rng.expovariate(rate_per_h) * HOUR_MS, lambda: self._burst(gateway))

    def _of(self, gateway: str) -> list[Machine]:
        return [machine for machine in self.machines.values() if machine.gateway == gateway and not machine.retired]

    def _burst(self, gateway: str) -> None:
        if not self.stormy:
            return
        machines = self._of(gateway)
        devices, at_ms = [device for machine in machines for device in machine.devices.values()], 0
        for _ in range(self._rng.randint(1, 2 * BURST_EVENTS - 1)):
            if self._rng.random() < TECHNICIAN_SHARE:
                self.world.schedule.after(at_ms, self._rng.choice(machines).book)
            else:
                self.world.schedule.after(at_ms, self._rng.choice(devices).scan)
            at_ms += self._rng.choice((0, 1, self._rng.randint(1, BURST_GAP_MS_MAX)))
        self._plan_burst(gateway)

    def _scan_all(self, gateway: str) -> None:
        for machine in self._of(gateway):
            for device in machine.devices.values():
                device.scan()

    def _heal(self) -> None:
        self.world.trace("universe", "heals")
        stormy, self.stormy, self.world.fault_rates = self.world.fault_rates, False, CALM
        if stormy.failovers_per_h and self._rng.random() < LAST_FAILOVER_SHARE:
            self.fail_over(self._rng.randint(1, LAST_FAILOVER_COMMITS_MAX))
        self.heal_database()
        self._faults.end()
        for machine in self.machines.values():
            machine.disk.free()
            self.heal_link(machine)
            for device in machine.devices.values():
                device.come_back()

    def answer_alarms(self) -> None:
        """What nothing in the protocol tells: after a failover the cloud has judged entries otherwise than before."""
        logs, self.store.rejudged = sorted(self.store.rejudged), set()
        for log in logs:
            for machine in self.machines.values():
                if machine.alive and machine.site == self.registry[log.gateway].site_id:
                    machine.fetch_anew(log)
        if logs:
            self.world.schedule.run_until(self.world.now_ms + LOOK_MS)

    def _settle(self) -> None:
        end_ms = self.world.now_ms + SETTLE_MS
        while (reason := final_checks.unsettled(self.machines, self.store)) is not None or self.store.rejudged:
            if reason is None:
                self.answer_alarms()
                continue
            if self.world.now_ms >= end_ms:
                raise Violation("settles", f"{SETTLE_MS // 60_000} minutes after all faults ended, {reason}")
            self.world.schedule.run_until(self.world.now_ms + LOOK_MS)

    def close(self) -> None:
        """Give the disks back."""
        for machine in self.machines.values():
            machine.disk.close()

"""What goes wrong at large: power, links, disks, clocks, workers, brokers and the database, at random times."""

import math
from collections.abc import Callable
from typing import Final

from simulation.disasters import Disasters
from simulation.edge.machine import Machine
from simulation.steps import HOUR_MS
from simulation.universe import Universe

PARTITION_MS: Final = (5_000, 3 * HOUR_MS)
OUTAGE_MS: Final = (1_000, HOUR_MS)
FULL_MS: Final = (10_000, HOUR_MS)
NOTICED_MS_MAX: Final = 45_000
COMMITS_LACKED_MAX: Final = 12


class Chaos:
    """Draws when and what; each kind of fault is a Poisson process of its own."""

    def __init__(self, universe: Universe) -> None:
        self._universe, self._world = universe, universe.world
        self._rng = universe.world.rng("chaos")
        self.disasters = Disasters(universe)

    def start(self) -> None:
        """Plan the first fault of each kind."""
        fault_rates, gateways = self._world.fault_rates, self._universe.size.gateways
        kinds: list[tuple[float, Callable[[], None]]] = [
            (fault_rates.power_cuts_per_h * gateways, self._cut_power),
            (fault_rates.partitions_per_h * gateways, self._cut_link),
            (fault_rates.disk_full_per_h * gateways, self._fill_disk),
            (fault_rates.clock_steps_per_h * gateways, self._step_clock),
            (fault_rates.restores_per_h * gateways, self.disasters.back_up),
            (fault_rates.clones_per_h * gateways, self.disasters.clone),
            (fault_rates.replacements_per_h * gateways, self.disasters.replace),
            (fault_rates.moves_per_h * gateways, self.disasters.move),
            (fault_rates.worker_deaths_per_h * len(self._universe.workers), self._kill_worker),
            (fault_rates.broker_wipes_per_h, self._universe.wipe_broker),
            (fault_rates.outages_per_h, self._outage),
            (fault_rates.failovers_per_h, self._fail_over),
        ]
        for rate, strike in kinds:
            if rate:
                self._plan(rate, strike)

    def end(self) -> None:
        """The storm is over."""
        self.disasters.end()

    def _plan(self, rate_per_h: float, strike: Callable[[], None]) -> None:
        def step() -> None:
            if self._universe.stormy:
                strike()
                self._plan(rate_per_h, strike)

        self._world.schedule.after(self._rng.expovariate(rate_per_h) * HOUR_MS, step)

    def _machine(self) -> Machine:
        return self._rng.choice(list(self._universe.machines.values()))

    def _long(self, bounds: tuple[int, int]) -> float:
        """A duration: mostly short, sometimes very long."""
        low, high = bounds
        return math.exp(self._rng.uniform(math.log(low), math.log(high)))

    def _cut_power(self) -> None:
        machine = self._machine()
        if machine.alive:
            machine.die()

    def _cut_link(self) -> None:
        machine, universe = self._machine(), self._universe
        if machine.name in universe.network.cut:
            return
        machine.note("has no link to the cloud")
        universe.network.cut.add(machine.name)
        self._world.schedule.after(self._rng.randint(0, NOTICED_MS_MAX), lambda: universe.notice(machine))
        self._world.schedule.after(self._long(PARTITION_MS), lambda: universe.heal_link(machine))

    def _fill_disk(self) -> None:
        machine, universe = self._machine(), self._universe
        machine.note("has a full disk")
        machine.disk.fill()

        def free() -> None:
            if machine.name in universe.machines:
                machine.disk.free()  # the disk may be another by then

        self._world.schedule.after(self._long(FULL_MS), free)

    def _step_clock(self) -> None:
        self._machine().step_clock()

    def _kill_worker(self) -> None:
        worker = self._rng.choice(self._universe.workers)
        if worker.alive:
            worker.die()

    def _outage(self) -> None:
        universe = self._universe
        if not universe.store.away:
            universe.lose_database()
            self._world.schedule.after(self._long(OUTAGE_MS), universe.heal_database)

    def _fail_over(self) -> None:
        self._universe.fail_over(self._rng.randint(0, COMMITS_LACKED_MAX))

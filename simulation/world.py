"""What everything in a universe shares: time, chance, fault rates, the trace and the checks."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from simulation.checks import Checks
from simulation.fault_rates import CALM, FaultRates
from simulation.steps import Schedule, Trace


class PowerLoss(BaseException):
    """A gateway's power or a worker's process is gone, between two steps. No guard of production catches it."""


@dataclass(slots=True, kw_only=True)
class World:
    """One universe's shared facts. Every source of chance is derived from the seed by name."""

    seed: int
    schedule: Schedule
    trace: Trace
    checks: Checks
    fault_rates: FaultRates = CALM
    _chance: dict[str, random.Random] = field(default_factory=dict)

    @property
    def now_ms(self) -> int:
        """The true time of the universe; only the cloud's clocks show it."""
        return self.schedule.now_ms

    def rng(self, name: str) -> random.Random:
        """A source of chance of its own, so that one part's draws do not shift another's."""
        if name not in self._chance:
            self._chance[name] = random.Random(f"{self.seed}/{name}")  # noqa: S311 - replayable on purpose
        return self._chance[name]

    def happens(self, name: str, chance: float) -> bool:
        """Draw; nothing is drawn for what cannot happen."""
        return chance > 0 and self.rng(name).random() < chance


@dataclass(slots=True)
class Process:
    """Something that lives, dies between two steps and lives again; what it had planned dies with it."""

    world: World
    name: str
    life: int = 0
    alive: bool = False

    def later(self, delay_ms: float, step: Callable[[], None]) -> None:
        """Run a step later, if this life lasts that long."""
        life = self.life

        def run() -> None:
            if self.alive and self.life == life:
                self.guarded(step)

        self.world.schedule.after(delay_ms, run)

    def guarded(self, step: Callable[[], None]) -> None:
        """Run a step that may be this life's last."""
        try:
            step()
        except PowerLoss:
            self.die()

    def may_crash(self, where: str, chance: float) -> None:
        """Perhaps die here.

        Raises:
            PowerLoss: this was the end.
        """
        if self.world.happens(f"{self.name}.brink", chance):
            self.world.trace(self.name, f"dies {where}")
            raise PowerLoss

    def die(self) -> None:
        """End this life at once."""
        self.alive = False
        self.life += 1

    def note(self, what: str) -> None:
        """A line of the trace."""
        self.world.trace(self.name, what)

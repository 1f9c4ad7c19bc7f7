"""A gateway's clocks: a wall clock that may be wrong, set or lost, and a monotonic clock that nobody can touch.

Invariant: an entry's boot and monotonic time tell exactly when it happened; the universe alone knows how.
"""

from typing import Final

from simulation.steps import HOUR_MS
from simulation.world import World
from wire_protocol import names

YEAR_MS: Final = 365 * 24 * HOUR_MS
STEPS_MS: Final = (-8 * HOUR_MS, -2 * HOUR_MS, -60_000, -3_000, 2_500, 90_000, 5 * HOUR_MS)


class VirtualClock:
    """Right until it is set or its battery is empty; a new boot after each power cut."""

    def __init__(self, world: World, machine: str) -> None:
        self._world, self._machine = world, machine
        self.skew_ms = 0
        self.boot = ""
        self._since_ms = 0

    def reboot(self) -> None:
        """The monotonic clock starts again; the wall clock goes on, or comes back wrong."""
        world = self._world
        self._since_ms = world.now_ms
        self.boot = names.ulid(world.now_ms, world.rng(f"{self._machine}.boot").randbytes(10))
        world.checks.booted(self.boot, self._since_ms)
        if world.happens(f"{self._machine}.battery", world.fault_rates.clock_lost):
            rng = world.rng(f"{self._machine}.battery")
            self.skew_ms = rng.choice((-world.now_ms, 3 * YEAR_MS, -2 * YEAR_MS, 100_000, 240_000))
            world.checks.jumped.add(self._machine)
            world.trace(self._machine, f"boots with a clock that is {self.skew_ms / 1000:+,.0f} s off")

    def step(self) -> int | None:
        """Somebody sets the clock: by how much, None for right."""
        rng = self._world.rng(f"{self._machine}.clock")
        by_ms = rng.choice((*STEPS_MS, None, None))
        self._world.checks.jumped.add(self._machine)
        self.skew_ms = 0 if by_ms is None else self.skew_ms + by_ms
        return by_ms

    def now_ms(self) -> int:
        return max(0, self._world.now_ms + self.skew_ms)

    def mono_ms(self) -> int:
        return self._world.now_ms - self._since_ms

"""The simulated world's clock: real time times a speed, or `max`, where nothing is waited for.

Invariant: it starts at a given time, only moves forward, and reads no clock but the one it was given.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from firmware_sim.errors import BadInput

SPEED_MAX: Final = 10_000_000.0
SLEEP_S_MIN: Final = 0.001  # an event loop cannot tell less apart


class Pace:
    """How fast simulated time passes; `speed` None is as fast as the gateways take it."""

    def __init__(self, speed: float | None, monotonic: Callable[[], float] = time.monotonic) -> None:
        if speed is not None and not 0 < speed <= SPEED_MAX:
            raise BadInput(f"The speed must be above 0 and at most {SPEED_MAX:.0f}.", hint="Or `max`.")
        self.speed = speed
        self._monotonic = monotonic
        self._start_ms, self._started_s = 0, 0.0

    @property
    def is_max(self) -> bool:
        return self.speed is None

    def start(self, at_ms: int) -> None:
        """It is now `at_ms` in the simulated world."""
        self._start_ms, self._started_s = at_ms, self._monotonic()

    def link_ms(self) -> int:
        """The real, monotonic time in milliseconds, that links live by."""
        return int(self._monotonic() * 1_000)

    def now_ms(self) -> int:
        """The time in the simulated world; at `max` speed each device has its own."""
        passed_s = (self._monotonic() - self._started_s) * (self.speed or 0.0)
        return self._start_ms + int(passed_s * 1_000)

    def wait_s(self, at_ms: int) -> float:
        """Real seconds until a time of the simulated world."""
        if self.speed is None:
            return 0.0
        return max(0.0, (at_ms - self.now_ms()) / 1_000 / self.speed)

    async def until(self, at_ms: int) -> None:
        """Wait for a time of the simulated world."""
        wait_s = self.wait_s(at_ms)
        if wait_s > SLEEP_S_MIN:
            await asyncio.sleep(wait_s)


def parse_speed(text: str) -> float | None:
    """A speed as typed: a number, `60x`, or `max`.

    Raises:
        BadInput: it is none of these.
    """
    if text == "max":
        return None
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        raise BadInput(f"{text!r} is not a speed.", hint="Give a number such as 60, or `max`.") from None
    Pace(speed)
    return speed

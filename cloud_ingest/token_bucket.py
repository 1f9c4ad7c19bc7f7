"""An allowance: how many messages may go out now, so that on average no more than so many a second do (a token bucket).

Invariant: in any second at most a second's worth and one turn's go out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

TURNS_PER_S: Final = 10  # what has gathered beyond a turn's worth is forgotten


@dataclass(slots=True)
class Allowance:
    """What is left of `per_s` messages a second. `now_s` is a clock that is never set."""

    per_s: float
    now_s: Callable[[], float] = time.monotonic
    _left: float = field(init=False)
    _at_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._at_s = self.turn, self.now_s()

    @property
    def turn(self) -> int:
        """The most that may go out at once."""
        return max(1, round(self.per_s / TURNS_PER_S))

    def left(self) -> int:
        """How many may go out now."""
        now_s = self.now_s()
        self._left = min(self.turn, self._left + (now_s - self._at_s) * self.per_s)
        self._at_s = now_s
        return int(self._left)

    def spend(self, messages: int) -> None:
        """So many have gone out; more than were left must be made up for."""
        self._left -= messages

"""A token bucket: a bound of messages per second on average.

Invariant: in any second at most a second's worth and one turn's worth go out.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

WAIT_S_MIN: Final = 0.001
TURNS_PER_S: Final = 10  # what has gathered beyond a turn's worth is forgotten


@dataclass(slots=True)
class TokenBucket:
    """Tokens for `per_s` messages a second. `now_s` is a clock that is never set."""

    per_s: float
    now_s: Callable[[], float] = time.monotonic
    _tokens: float = field(init=False)
    _at_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._tokens, self._at_s = self.turn, self.now_s()

    @property
    def turn(self) -> int:
        """The most that may go out at once."""
        return max(1, round(self.per_s / TURNS_PER_S))

    def available(self) -> int:
        """How many may go out now."""
        now_s = self.now_s()
        self._tokens = min(self.turn, self._tokens + (now_s - self._at_s) * self.per_s)
        self._at_s = now_s
        return int(self._tokens)

    def spend(self, messages: int) -> None:
        """Take `messages` tokens that were used; the bucket may go below zero and must refill first."""
        self._tokens -= messages

    def try_spend(self) -> bool:
        """Take a token, if there is one."""
        if not self.available():
            return False
        self.spend(1)
        return True

    async def acquire(self) -> None:
        """Wait for a token and take it."""
        while not self.try_spend():  # noqa: ASYNC110 - time makes tokens, no event does
            # Rounding may leave a hair of a token to wait for, which no clock can show.
            await asyncio.sleep(max(WAIT_S_MIN, (1 - self._tokens) / self.per_s))

    async def half_a_turn(self) -> int:
        """Wait until it is worth asking what to send. Returns how many may go out."""
        while 2 * self.available() < self.turn:  # noqa: ASYNC110 - as above
            await asyncio.sleep(1 / (2 * TURNS_PER_S))
        return self.available()

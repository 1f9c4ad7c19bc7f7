"""An event loop whose clock is turned by hand: time passes when nothing else is left to do, and then at once.

What waits an hour for its next turn is tested in a moment, and a pace is measured exactly, however busy the machine is.
For code that speaks to nobody over a network: an answer of another process would come hours later on this clock.

Invariant: the clock stands still while a call runs in a thread, so that no time-out passes for a slow machine.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar, TypeVarTuple

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class TurnedLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to its next timer instead of waiting for it."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._calls = 0
        super().__init__(_TurningSelector(self._turn))

    def time(self) -> float:
        """Seconds since the loop was made, on its own clock."""
        return self._now_s

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> "asyncio.Future[T]":
        """Call in a thread; the clock stands still until the call has ended."""
        future = super().run_in_executor(executor, func, *args)
        self._calls += 1
        future.add_done_callback(self._called)
        return future

    def _called(self, _future: "asyncio.Future[Any]") -> None:
        self._calls -= 1

    def _turn(self, by_s: float) -> bool:
        if self._calls:
            return False
        self._now_s += by_s
        return True


class _TurningSelector(selectors.DefaultSelector):
    """Where a loop waits: for a timer the clock is turned, for a thread and for nothing in particular it does wait."""

    def __init__(self, turn: Callable[[float], bool]) -> None:
        super().__init__()
        self._turn = turn

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now, or nothing after the clock was turned by the time-out."""
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(0)
        if ready or self._turn(timeout):
            return ready
        return super().select(None)


def turned(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Run an asynchronous test on a clock turned by hand."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with asyncio.Runner(loop_factory=TurnedLoop) as runner:
            return runner.run(test(*args, **kwargs))

    return run


async def pass_time(seconds: float) -> None:
    """Turn the clock by so much; all that can happen by then has happened when this returns."""
    assert isinstance(asyncio.get_running_loop(), TurnedLoop), "on a real clock this would be a sleep"
    await asyncio.sleep(seconds)


def now_s() -> float:
    """The time of the running loop's own clock."""
    return asyncio.get_running_loop().time()

"""Contacts with a broker, one after the other, until cancelled."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from mqtt_client.errors import ConnectionLost

DOUBLINGS_MAX: Final = 16
AGAIN_S: Final = 1.0
T = TypeVar("T")


@dataclass(slots=True)
class Backoff:
    """Pauses between contacts: doubled with each failure, with full jitter, so that a thousand do not come in step.

    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/)

    Attributes:
        first_s: the longest pause after the first failure.
        max_s: the longest pause.
        uniform: draws between two numbers.
    """

    first_s: float
    max_s: float
    uniform: Callable[[float, float], float] = random.uniform
    failures: int = 0

    def reset(self) -> None:
        """A contact came about."""
        self.failures = 0

    def slow_down(self) -> None:
        """What failed will fail again at once: wait as long as after many failures."""
        self.failures = DOUBLINGS_MAX

    def next_s(self) -> float:
        """The pause before the next contact."""
        ceiling_s = min(self.max_s, self.first_s * 2 ** min(self.failures, DOUBLINGS_MAX))
        self.failures += 1
        return float(self.uniform(0.1, 1.0) * ceiling_s)


async def stay_connected(
    contact: Callable[[], Coroutine[Any, Any, None]],
    lost: Callable[[ConnectionLost], None],
    backoff: Backoff,
    name: str,
) -> None:
    """Make contact again and again, until cancelled.

    Args:
        contact: one contact, from connecting to its end; it may also return.
        lost: called with the reason why a connection ended.
        backoff: how long to wait before the next; `contact` resets it when it has connected.
        name: of the contact's task.
    """
    while True:
        try:
            await in_a_task(contact(), name)
        except* ConnectionLost as errors:
            lost(_first(errors))
        await asyncio.sleep(backoff.next_s())


async def in_a_task(call: Coroutine[Any, Any, T], name: str) -> T:
    """Run a contact in a task of its own, so that nothing but a cancellation of ours cancels us.

    A broker that ends in the same moment, as at Ctrl-C, hides a cancellation from the contact. And a task group whose
    body has ended cancels its task when a child fails, which it does not take back before Python 3.13
    (https://github.com/python/cpython/issues/116720): code that asks afterwards takes that for a real one.

    Raises:
        ConnectionLost: also when the connection seemed to be cancelled, and no caller has cancelled us.
    """
    task = asyncio.create_task(call, name=name)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        while not task.done():
            task.cancel()
            await _ended(task)  # a contact that has swallowed it is asked again
        if not task.cancelled():
            task.exception()  # what it was no longer matters
        raise
    if task.cancelled():
        raise ConnectionLost("The contact ended by itself.")
    return task.result()


async def _ended(task: "asyncio.Task[Any]") -> None:
    try:
        await asyncio.wait([task], timeout=AGAIN_S)
    except asyncio.CancelledError:
        return


def _first(errors: BaseExceptionGroup[ConnectionLost]) -> ConnectionLost:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ConnectionLost)  # noqa: S101 - the group holds nothing else
    return error

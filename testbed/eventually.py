"""Waiting for a fact that nothing announces: one of another process, of another thread, or of a database.

What does announce itself (a condition, an event, a message) is waited for there. The limit is generous because it only
decides how long a broken test takes: on a busy machine everything takes longer, and nothing here may fail for that.

Invariant: the fact is looked at at least once after the limit has passed, so a machine that slept through the limit
does not fail a test whose fact has come true meanwhile.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast, overload

T = TypeVar("T")
WITHIN_S: Final = 60.0
POLL_S: Final = 0.02
DESCRIPTION_CHARACTERS_MAX: Final = 300


class NeverHappened(AssertionError):
    """What was waited for did not come true within the limit."""


def eventually(
    look: Callable[[], T],
    what: str = "",
    *,
    within_s: float = WITHIN_S,
    poll_s: float = POLL_S,
    explain: Callable[[], object] | None = None,
) -> T:
    """Look until what is seen is true, and return it.

    Args:
        look: returns what is seen; anything true ends the wait.
        what: the fact that is waited for, for the failure's message; without it the message quotes `look`.
        within_s: how long to look, in seconds.
        poll_s: the pause between two looks, in seconds.
        explain: what else the failure's message is to say.

    Raises:
        NeverHappened: nothing true was seen within the limit; the message names the fact and the last value seen.
    """
    deadline = time.monotonic() + within_s
    while True:
        is_last = time.monotonic() > deadline
        if seen := look():
            return seen
        if is_last:
            raise NeverHappened(_failure(what or _quoted(look), seen, within_s, explain))
        time.sleep(poll_s)


@overload
async def eventually_async(
    look: Callable[[], Coroutine[Any, Any, T]],
    what: str = "",
    *,
    within_s: float = WITHIN_S,
    poll_s: float = POLL_S,
    explain: Callable[[], object] | None = None,
) -> T: ...


@overload
async def eventually_async(
    look: Callable[[], T],
    what: str = "",
    *,
    within_s: float = WITHIN_S,
    poll_s: float = POLL_S,
    explain: Callable[[], object] | None = None,
) -> T: ...


async def eventually_async(
    look: Callable[[], Coroutine[Any, Any, T] | T],
    what: str = "",
    *,
    within_s: float = WITHIN_S,
    poll_s: float = POLL_S,
    explain: Callable[[], object] | None = None,
) -> T:
    """As `eventually`, while the event loop goes on; `look` may be a coroutine function.

    What blocks (a database, a command) belongs into a thread: `asyncio.to_thread(eventually, look)`.
    """
    deadline = time.monotonic() + within_s
    while True:
        is_last = time.monotonic() > deadline
        looked = look()
        if seen := cast("T", await looked if inspect.isawaitable(looked) else looked):
            return seen
        if is_last:
            raise NeverHappened(_failure(what or _quoted(look), seen, within_s, explain))
        await asyncio.sleep(poll_s)


def _failure(what: str, seen: object, within_s: float, explain: Callable[[], object] | None) -> str:
    more = f"; {explain()}" if explain is not None else ""
    return f"did not happen within {within_s:g} s: {what}; last seen: {seen!r}{more}"


def _quoted(look: Callable[[], object]) -> str:
    """The lines that define what was looked at: the statement around a lambda, the head and body of a function."""
    try:
        lines = inspect.getsource(look).split()
    except (OSError, TypeError):
        return repr(look)
    return " ".join(lines)[:DESCRIPTION_CHARACTERS_MAX]

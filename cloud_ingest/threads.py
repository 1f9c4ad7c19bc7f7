"""Calls into the synchronous store from the event loop.

Invariant: a call that has begun is finished before its task ends, even when the task is cancelled: a merge that is
half done is either committed or rolled back by the database, never abandoned by us.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def uninterrupted(call: Callable[[], T]) -> T:
    """Run a call in a thread; a cancellation takes effect after it has ended."""
    future = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise

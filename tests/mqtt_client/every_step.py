"""Cancel an operation at each step that it takes, one run for each.

A step is one await at which the operation, or a task that it has started, suspends. In each run the operation's task is
cancelled at the next step, until a run ends before its step is reached: no await is left out, also none that is added
later.

Invariant: the tasks of the broker, which runs in the same loop, are not counted.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar, copy_context
from enum import Enum
from typing import Any, Final

from testbed.eventually import eventually_async

RUN_S: Final = 60.0
TURNS_MAX: Final = 3
STEPS_MAX: Final = 200
_COUNTED: ContextVar["Steps | None"] = ContextVar("steps", default=None)


class When(Enum):
    """When the cancellation comes, seen from the step."""

    AT_ONCE = "at once"
    WITH_THE_ANSWER = "with the answer"
    AFTER_THE_ANSWER = "a turn after the answer"


class Steps:
    """Counts the steps of an operation and of the tasks that it starts; cancels the operation at one of them."""

    def __init__(self, at: int, when: When) -> None:
        self.at, self.when = at, when
        self.taken = 0
        self.task: asyncio.Task[Any] | None = None
        self.started: list[asyncio.Task[Any]] = []
        self.cancelled = False

    @property
    def is_reached(self) -> bool:
        """Whether the operation was still running when its cancellation came."""
        return self.cancelled

    def suspended(self, loop: asyncio.AbstractEventLoop, future: Any) -> None:
        """A task waits for this."""
        self.taken += 1
        if self.taken != self.at:
            return
        if self.when is When.AT_ONCE or future is None:
            loop.call_soon(self._cancel)
        elif self.when is When.WITH_THE_ANSWER:
            future.add_done_callback(self._cancel)  # before the task's own callback, which wakes it
        else:
            future.add_done_callback(lambda _: loop.call_soon(self._cancel))

    def _cancel(self, _: object = None) -> None:
        if self.task is not None and not self.task.done():
            self.cancelled = True
            self.task.cancel()


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine whose suspensions are counted."""

    def __init__(self, inner: Coroutine[Any, Any, Any], steps: Steps, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._steps, self._loop = inner, steps, loop

    def send(self, value: Any) -> Any:
        return self._noted(self._inner.send(value))

    def throw(self, *error: Any) -> Any:
        return self._noted(self._inner.throw(*error))

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError

    def _noted(self, future: Any) -> Any:
        self._steps.suspended(self._loop, future)
        return future


def _factory(
    loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, Any] | Generator[Any, None, Any], **options: Any
) -> "asyncio.Task[Any]":
    context: Context = options.get("context") or copy_context()
    steps = context.get(_COUNTED)
    if steps is None or not isinstance(call, Coroutine):
        return asyncio.Task(call, loop=loop, **options)
    task = asyncio.Task(_Counted(call, steps, loop), loop=loop, **options)
    steps.started.append(task)
    return task


@asynccontextmanager
async def _watched() -> AsyncIterator[list[str]]:
    """The loop's complaints, as of an exception that nobody retrieved."""
    loop, complaints = asyncio.get_running_loop(), list[str]()
    loop.set_exception_handler(lambda _, what: complaints.append(f"{what['message']}: {what.get('exception')!r}"))
    loop.set_task_factory(_factory)
    try:
        yield complaints
    finally:
        loop.set_task_factory(None)
        loop.set_exception_handler(None)


async def cancelled_at_each_step(
    operation: Callable[[], Coroutine[Any, Any, Any]],
    when: When,
    *,
    is_clean: Callable[[], bool],
    steps_max: int = STEPS_MAX,
) -> int:
    """Run the operation again and again, each time cancelled one step later.

    Args:
        operation: makes one run of it.
        when: the moment of the cancellation.
        is_clean: whether nothing is left that the operation had opened; becomes true soon after each run.
        steps_max: how many steps to try of an operation that never ends by itself.

    Returns:
        The number of steps that the operation was cancelled at.
    """
    reached = 0
    async with _watched() as complaints:
        for at in range(1, steps_max + 1):
            steps = await _run(operation, Steps(at, when))
            where = f"cancelled {when.value} at step {at} of {steps.taken}"
            gc.collect(1)  # the young: a future that is dropped complains then
            await eventually_async(is_clean, f"nothing is left open: {where}")
            assert not complaints, f"{where}: {complaints}"
            if not steps.is_reached and steps.taken < at:
                break
            reached += steps.is_reached
    return reached


async def _run(operation: Callable[[], Coroutine[Any, Any, Any]], steps: Steps) -> Steps:
    token = _COUNTED.set(steps)
    try:
        steps.task = task = asyncio.create_task(operation(), name="operation")
    finally:
        _COUNTED.reset(token)
    await asyncio.wait([task], timeout=RUN_S)
    where = f"cancelled {steps.when.value} at step {steps.at} of {steps.taken}"
    assert task.done(), f"it waits for itself: {where}"
    if steps.is_reached:
        assert task.cancelled(), f"the cancellation was forgotten: {where}: {task.exception()!r}"
    elif not task.cancelled():
        task.result()
    else:
        raise AssertionError(f"nobody cancelled it: {where}")
    for _ in range(TURNS_MAX):
        await asyncio.sleep(0)  # a task that was cancelled last ends in its next turn
    left = [each.get_name() for each in steps.started if not each.done()]
    assert not left, f"tasks are left: {left}: {where}"
    return steps

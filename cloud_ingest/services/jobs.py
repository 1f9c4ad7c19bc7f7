"""Jobs: takes the next step of every job under way; any worker may take it."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, Final

from cloud_ingest.context import Context
from cloud_ingest.mailbox import Mailbox, WakeUp
from cloud_store.provisioning import jobs

LOOK_S: Final = 1.0
JOBS_MAX: Final = 10_000


class Jobs:
    """Keeps jobs going."""

    def __init__(self, context: Context) -> None:
        self._context, self._database = context, context.database
        self.wake = WakeUp("jobs")
        # A job each, so that one whose step fails holds up no other.
        self._due: Mailbox[tuple[None, str], None] = context.mailbox("job_steps", JOBS_MAX)

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.serve(self.wake, self._look)
        yield self._context.serve(self._due, self._step)

    async def _look(self, _key: None, _value: None) -> None:
        """Find what is under way: once a second while anything is."""
        while running := await self._database.run(jobs.running):
            for job in running:
                self._due.put((None, job), None)
            await asyncio.sleep(LOOK_S)

    async def _step(self, key: tuple[None, str], _value: None) -> None:
        _, job = key
        while await self._database.run(jobs.step, job):
            pass

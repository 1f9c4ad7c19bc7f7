"""Jobs: takes the next step of whatever is under way; which worker does does not matter."""

import asyncio
from typing import Final

import structlog

from cloud_ingest.threads import uninterrupted
from cloud_store.base.errors import DatabaseUnavailable, StoreError
from cloud_store.provisioning.jobs import JobStore

LOOK_S: Final = 1.0
_LOG = structlog.get_logger()


class Jobs:
    """Keeps jobs going."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._work = asyncio.Event()

    def wake(self) -> None:
        """A job may have begun."""
        self._work.set()

    async def run(self) -> None:
        """Step until cancelled: once a second while anything is under way."""
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                while jobs := await uninterrupted(self._store.running):
                    for job in jobs:
                        await self._step(job)
                    await asyncio.sleep(LOOK_S)
            except StoreError as error:
                _LOG.warning("jobs_failed", reason=str(error), hint=error.hint)
                self._work.set()
                await asyncio.sleep(LOOK_S)

    async def _step(self, job: str) -> None:
        """Take all steps of a job that can be taken now. One that fails is tried again after the others had theirs."""
        try:
            while await uninterrupted(lambda: self._store.step(job)):
                pass
        except DatabaseUnavailable:
            raise
        except StoreError as error:
            _LOG.warning("job_step_failed", job=job, reason=str(error), hint=error.hint)

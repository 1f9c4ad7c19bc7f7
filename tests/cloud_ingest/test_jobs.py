"""A worker keeps jobs going, each for itself."""

import asyncio
from typing import Any, cast

from cloud_ingest.services.jobs import Jobs
from cloud_store.base.errors import InvalidFirmware


class TwoJobs:
    """A store with two jobs under way: no step of the first can be taken."""

    def __init__(self) -> None:
        self.second_stepped = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def running(self) -> list[str]:
        """Part of `JobStore`."""
        return ["first", "second"]

    def step(self, job: str) -> bool:
        """Part of `JobStore`."""
        if job == "first":
            raise InvalidFirmware("It can never be done.")
        self._loop.call_soon_threadsafe(self.second_stepped.set)
        return False


async def test_a_job_whose_step_fails_does_not_hold_up_the_others() -> None:
    """The older job failed each time before the newer one had its turn, which so never began: for every tenant."""
    store = TwoJobs()
    made = Jobs(cast("Any", store))
    made.wake()
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(10):
        await store.second_stepped.wait()
    assert not running.done()
    running.cancel()
    await asyncio.wait([running])

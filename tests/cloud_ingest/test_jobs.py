"""A worker keeps jobs going, each for itself."""

import asyncio

from cloud_ingest.services.jobs import Jobs
from cloud_store.base.errors import InvalidFirmware
from cloud_store.provisioning import jobs
from testbed.store import context, running


async def test_a_job_whose_step_fails_does_not_hold_up_the_others() -> None:
    """The older job failed each time before the newer one had its turn, which so never began: for every tenant."""
    second_stepped = asyncio.Event()

    def step(job: str) -> bool:
        if job == "first":
            raise InvalidFirmware("It can never be done.")
        second_stepped.set()
        return False

    made = Jobs(context({jobs.running: lambda: ["first", "second"], jobs.step: step}))
    made.wake()
    async with running(made.loops()), asyncio.timeout(10):
        await second_stepped.wait()

"""Which shards this worker serves: a fair share of all, kept up to date while workers come and go; and what wakes it.

Invariant: when the session that holds the leases is lost, so are all leases, at once and on both sides.
"""

import asyncio
import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple, TypeVar

import structlog

from cloud_ingest.metrics import WorkerMetrics
from cloud_store.base.database import finished
from cloud_store.base.errors import StoreError
from cloud_store.base.leases import LeaseSession, Survey
from wire_protocol.topics import SHARDS

RETRY_DELAY_S_MAX: Final = 5.0
LOOK_S: Final = 5.0  # how often is looked without a notification
SLICE_S: Final = 0.25
NOTIFICATION_S_MIN: Final = 0.1  # between two notifications that are looked at
_LOG = structlog.get_logger()
T = TypeVar("T")


class Change(NamedTuple):
    """What to give back and what to try to take."""

    release: frozenset[int]
    acquire: frozenset[int]


def rebalance(survey: Survey) -> Change:
    """Move towards the fair share: the number of shards over the number of workers, rounded up.

    Rounded up, every shard finds a worker; who has more than that gives the highest numbers back.
    """
    share = math.ceil(SHARDS / max(1, survey.workers))
    surplus = sorted(survey.mine)[share:]
    free = sorted(set(range(SHARDS)) - survey.mine - survey.others)
    return Change(frozenset(surplus), frozenset(free[: max(0, share - len(survey.mine))]))


class Leases:
    """Keeps this worker's leases, and listens to what the database notifies on the same session.

    Args:
        session: makes a session.
        changed: called with the leases whenever they differ from before.
        notified: called when something was written that a gateway should get, and now and then in case a notification
            was lost.
        metrics: the worker's.
        poll_s: seconds between two looks at the leases.
    """

    def __init__(
        self,
        session: Callable[[], LeaseSession],
        changed: Callable[[frozenset[int]], None],
        notified: Callable[[], None],
        metrics: WorkerMetrics,
        *,
        poll_s: float,
    ) -> None:
        self._session, self._changed, self._notified = session, changed, notified
        self._metrics, self._poll_s = metrics, poll_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="leases")
        self.held: frozenset[int] = frozenset()

    async def run(self) -> None:
        """Hold leases until cancelled, over as many sessions as it takes."""
        failures = 0
        while True:
            try:
                await self._hold()
            except StoreError as error:
                failures = failures + 1 if not self.held else 1
                _LOG.warning("leases_lost", shards=len(self.held), reason=str(error), hint=error.hint)
                self._set(frozenset())
            # Jittered, so that the workers of a fleet do not all come back at the same instant.
            delay_s = min(RETRY_DELAY_S_MAX, 0.1 * 2**failures) * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
            await asyncio.sleep(delay_s)

    async def _hold(self) -> None:
        loop = asyncio.get_running_loop()
        session = self._session()
        await self._call(session.__enter__)
        try:
            self._notified()  # whatever was written while no session listened
            look_at_s = loop.time() + LOOK_S
            while True:
                self._set(await self._call(partial(_step, session)))
                poll_at_s = loop.time() + self._poll_s
                while loop.time() < poll_at_s:
                    # In slices, because a worker that is asked to stop waits for the thread.
                    notified = await self._call(partial(session.notified, min(SLICE_S, self._poll_s)))
                    if notified or loop.time() > look_at_s:
                        self._notified()
                        look_at_s = loop.time() + LOOK_S
                    if notified:
                        # Every login may notify: one that does so without end wakes us ten times a second.
                        await asyncio.sleep(NOTIFICATION_S_MIN)
        finally:
            await self._call(partial(session.__exit__, None, None, None))

    async def _call(self, call: Callable[[], T]) -> T:
        return await finished(self._thread.submit(call))

    def _set(self, held: frozenset[int]) -> None:
        if held != self.held:
            _LOG.info("leases_changed", shards=len(held), gained=len(held - self.held), lost=len(self.held - held))
            self.held = held
            self._metrics.shards.set(len(held))
            self._changed(held)


def _step(session: LeaseSession) -> frozenset[int]:
    survey = session.survey()
    change = rebalance(survey)
    session.release(change.release)
    return survey.mine - change.release | session.acquire(change.acquire)

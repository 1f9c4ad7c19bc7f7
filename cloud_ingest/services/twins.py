"""Twins: pushes the documents that operators have changed, and stores what gateways report.

A change wakes the worker that serves the gateway's shard; a look now and then finds what a lost notification or a lost
message would have left. A gateway reports on every contact, and is answered when it has not got the latest.

Invariant: the rate of pushes is bounded. Invariant: a document is pushed from the database as it is then, so that an
older one never follows a newer one of this worker; the gateway refuses what another may have sent late.
"""

import asyncio
from functools import partial
from typing import Final, Protocol

import structlog

from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
from cloud_ingest.threads import uninterrupted
from cloud_ingest.token_bucket import TURNS_PER_S, Allowance
from cloud_ingest.waiting import Waiting
from cloud_store.base.errors import StoreError, Unstorable
from cloud_store.provisioning.twins import Push, TwinStore
from wire_protocol import topics
from wire_protocol.messages import InvalidMessage
from wire_protocol.topics import Channel
from wire_protocol.twin import ReportedTwin

RETRY_S: Final = 1.0
AGAIN_S: Final = 30.0
_LOG = structlog.get_logger()


class Retaining(Protocol):
    """Publishes a payload, without waiting."""

    def __call__(self, topic: str, payload: bytes, *, retain: bool) -> None: ...


class Twins:
    """Pushes twins of the shards that this worker serves."""

    def __init__(self, settings: IngestSettings, store: TwinStore, publish: Retaining, metrics: WorkerMetrics) -> None:
        self._settings, self._store, self._publish = settings, store, publish
        self._metrics = metrics
        self._allowance, self._answers = Allowance(settings.twins_per_s_max), Allowance(settings.twins_per_s_max)
        self._shards: frozenset[int] = frozenset()
        self._reports: Waiting[str, ReportedTwin] = Waiting(
            messages_max=settings.status_waiting_max, bytes_max=settings.waiting_bytes_max
        )
        self._changed = False
        self._work = asyncio.Event()

    def serve(self, shards: frozenset[int]) -> None:
        """Twins of these shards are pushed from here."""
        self._shards = shards
        self.wake()

    def reported(self, gateway: str, payload: bytes) -> None:
        """A gateway says what it has in force; the latest of each is kept until it is stored."""
        try:
            report = ReportedTwin.decode(payload)
        except InvalidMessage as error:
            _LOG.warning("report_refused", gateway=gateway, reason=str(error))
            return
        if self._reports.put(gateway, report, len(payload)):
            self._work.set()

    def wake(self) -> None:
        """There may be something to push."""
        self._changed = True
        self._work.set()

    async def run(self) -> None:
        """Push and store until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                # Those that are here now: one that reports without end must not keep the others from being pushed.
                for gateway in list(self._reports):
                    await self._store_report(gateway, self._reports[gateway])
                if self._reports:
                    self._work.set()
                if self._changed:
                    self._changed = False
                    await self._push_due()
            except StoreError as error:
                _LOG.warning("twins_failed", reason=str(error), hint=error.hint)
                self.wake()
                await asyncio.sleep(RETRY_S)

    async def _store_report(self, gateway: str, report: ReportedTwin) -> None:
        try:
            desired = await uninterrupted(lambda: self._store.report(gateway, report))
        except Unstorable as error:
            # Tried again, it would hold up everybody's for ever.
            _LOG.warning("report_dropped", gateway=gateway, reason=str(error))
            desired = None
        self._reports.discard(gateway, report)
        self._metrics.twins.labels("refused" if report.refused is not None else "reported").inc()
        if report.refused is not None:
            _LOG.error("twin_refused", gateway=gateway, version=report.refused, reason=report.reason)
        # An allowance of their own, so that one that asks without end keeps nobody waiting; who gets no answer is due.
        if desired is not None and self._answers.left():
            self._answers.spend(1)
            await self._push([Push(gateway, desired)])

    async def _push_due(self) -> None:
        while self._shards:
            limit = self._allowance.left()
            if 2 * limit >= self._allowance.turn:  # for one or two it is not worth asking
                due = await uninterrupted(partial(self._due, limit))
                if due:
                    self._allowance.spend(len(due))
                    await self._push(due)
                if len(due) < limit:
                    return
            else:
                await asyncio.sleep(1 / (2 * TURNS_PER_S))
            if self._reports:
                self.wake()  # whoever has reported meanwhile is not kept waiting by a change of the whole fleet
                return

    def _due(self, limit: int) -> list[Push]:
        return self._store.due(self._shards, limit=limit, again_s=AGAIN_S)

    async def _push(self, pushes: list[Push]) -> None:
        for push in pushes:
            self._publish(topics.link(push.gateway, Channel.DESIRED_TWIN), push.twin.encode(), retain=True)
        self._metrics.twins.labels("pushed").inc(len(pushes))
        await uninterrupted(lambda: self._store.pushed(pushes))

"""Twins: pushes the documents that operators have changed, and stores what gateways report.

A change wakes the worker that serves the gateway's shard; a look now and then finds what a lost notification or a lost
message would have left. A gateway reports on every contact, and is answered when it has not got the latest.

Invariant: the rate of pushes is bounded. Invariant: a document is pushed from the database as it is then, so that an
older one never follows a newer one of this worker; the gateway refuses what another may have sent late.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, Final

import structlog

from cloud_ingest.context import Context
from cloud_ingest.inbound import Inbound
from cloud_ingest.mailbox import Mailbox, WakeUp
from cloud_ingest.token_bucket import TokenBucket
from cloud_store.provisioning import twins
from cloud_store.provisioning.twins import Push
from wire_protocol import topics
from wire_protocol.messages import InvalidMessage
from wire_protocol.topics import Channel
from wire_protocol.twin import ReportedTwin

AGAIN_S: Final = 30.0
_LOG = structlog.get_logger()


class Twins:
    """Pushes twins of the shards that this worker serves."""

    def __init__(self, context: Context) -> None:
        self._context, self._database = context, context.database
        per_s = context.settings.twins_per_s_max
        # A bucket of their own for answers, so that a gateway that reports without end delays no push.
        self._pushes, self._answers = TokenBucket(per_s, context.mono_s), TokenBucket(per_s, context.mono_s)
        self._shards: frozenset[int] = frozenset()
        self._reports: Mailbox[str, ReportedTwin] = context.mailbox("twins", context.settings.reports_waiting_max)
        self.wake = WakeUp("twins")
        self._publishing = asyncio.Lock()

    def serve(self, shards: frozenset[int]) -> None:
        """Twins of these shards are pushed from here."""
        self._shards = shards
        self.wake()

    def reported(self, inbound: Inbound) -> None:
        """A gateway reports what it has in force."""
        try:
            report = ReportedTwin.decode(inbound.payload)
        except InvalidMessage as error:
            _LOG.warning("report_refused", gateway=inbound.sender, reason=str(error))
        else:
            self._reports.put(inbound.sender, report, len(inbound.payload))

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.serve(self._reports, self._store_report)
        yield self._context.serve(self.wake, self._push_due)

    async def _store_report(self, gateway: str, report: ReportedTwin) -> None:
        async with self._publishing:
            desired = await self._database.run(twins.report, gateway, report)
            # A gateway that gets no answer now is due again after a while.
            if desired is not None and self._answers.try_spend():
                await self._push([Push(gateway, desired)])
        self._context.metrics.twins.labels("refused" if report.refused is not None else "reported").inc()
        if report.refused is not None:
            _LOG.error("twin_refused", gateway=gateway, version=report.refused, reason=report.reason)

    async def _push_due(self, _key: None, _value: None) -> None:
        while self._shards:
            limit = await self._pushes.half_a_turn()
            async with self._publishing:
                due = await self._database.run(twins.due, self._shards, limit=limit, again_s=AGAIN_S)
                if due.made:
                    self._pushes.spend(len(due.made))
                    await self._push(due.made)
                if due.unreadable:
                    self._context.unreadable("twins", due.unreadable)
                    await self._database.run(twins.set_aside, [row.gateway for row in due.unreadable])
            if due.total < limit:
                return

    async def _push(self, pushes: list[Push]) -> None:
        for push in pushes:
            self._context.publish(topics.link(push.gateway, Channel.DESIRED_TWIN), push.twin.encode(), retain=True)
        self._context.metrics.twins.labels("pushed").inc(len(pushes))
        await self._database.run(twins.pushed, pushes)

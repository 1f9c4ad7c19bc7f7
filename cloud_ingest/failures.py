"""What could not be done, and whose it was: logged, counted, and raised as an alarm of the gateway it came from.

Invariant: reporting a failure never fails and never waits.
"""

from typing import Final

import structlog

from cloud_ingest.mailbox import Mailbox, serve
from cloud_ingest.metrics import WorkerMetrics
from cloud_store.base.database import Database
from cloud_store.merge import alarms
from cloud_store.merge.alarms import Alarm, AlarmKind

GATEWAYS_WAITING_MAX: Final = 1_000
DETAIL_CHARS_MAX: Final = 500
_LOG = structlog.get_logger()


class Failures:
    """Takes reports of failed items; `run` raises the alarms."""

    def __init__(self, database: Database, metrics: WorkerMetrics) -> None:
        self._database, self._metrics = database, metrics
        self._alarms: Mailbox[str, str] = Mailbox("alarms", items_max=GATEWAYS_WAITING_MAX)

    def report(self, service: str, gateway: str | None, error: Exception) -> None:
        """An item of a service failed, and was dropped. `gateway` sent it; None when no single gateway did."""
        self._count(service, gateway, error)
        if gateway is not None:
            self._alarms.put(gateway, f"{service}: {_text(error)}")

    async def run(self) -> None:
        """Raise alarms until cancelled."""
        await serve(self._alarms, self._raise, self._count)

    async def _raise(self, gateway: str, detail: str) -> None:
        await self._database.run(alarms.raise_all, [Alarm(gateway, AlarmKind.ITEM_DROPPED, detail)])

    def _count(self, service: str, gateway: str | None, error: Exception) -> None:
        self._metrics.failed_items.labels(service).inc()
        _LOG.error("item_dropped", service=service, gateway=gateway, reason=_text(error), exc_info=error)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:DETAIL_CHARS_MAX]

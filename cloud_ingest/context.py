"""What every service of a worker stands on, handed to each as one value."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from cloud_ingest.inbound import Publish
from cloud_ingest.mailbox import Mailbox, Report, Step, every, serve
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
from cloud_ingest.token_bucket import TokenBucket
from cloud_store.base.database import Database
from cloud_store.base.rows import UnreadableRow

K = TypeVar("K")
V = TypeVar("V")


def wall_clock_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Context:
    """Settings, database, broker, metrics, where failures are reported; and the clocks, which the simulator turns."""

    settings: IngestSettings
    database: Database
    publish: Publish
    metrics: WorkerMetrics
    failed: Report
    now_ms: Callable[[], int] = wall_clock_ms
    mono_s: Callable[[], float] = time.monotonic
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    def mailbox(self, name: str, items_max: int) -> Mailbox[Any, Any]:
        """A mailbox whose refusals are counted."""
        return Mailbox(
            name,
            items_max=items_max,
            bytes_max=self.settings.waiting_bytes_max,
            refused=self.metrics.refused_items.labels(name).inc,
        )

    def unreadable(self, service: str, rows: Iterable[UnreadableRow]) -> None:
        """Report rows of the database that nothing could be made of, each as its gateway's."""
        for row in rows:
            self.failed(service, row.gateway, row.error)

    def serve(
        self, mailbox: Mailbox[K, V], step: Step[K, V], rate: TokenBucket | None = None
    ) -> Coroutine[Any, Any, None]:
        """The loop that serves a mailbox: see `mailbox.serve`."""
        return serve(mailbox, step, self.failed, rate=rate)

    def every(self, interval_s: float, name: str, step: Callable[[], Awaitable[None]]) -> Coroutine[Any, Any, None]:
        """The loop that takes a step now and then: see `mailbox.every`."""
        return every(interval_s, name, step, self.failed)

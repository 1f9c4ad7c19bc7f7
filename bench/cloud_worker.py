"""The ingest worker that benchmarks measure, as a process of its own."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloud_store.base.connection import Connection
from testbed.eventually import eventually
from testbed.worker_process import WorkerProcess
from wire_protocol import topics


@contextmanager
def running_worker(database_url: str, mqtt_url: str, **environment: str) -> Iterator[None]:
    """A worker while the block runs; it must end in good order."""
    with tempfile.TemporaryDirectory() as folder:
        worker = WorkerProcess("bench", database_url, mqtt_url, Path(folder), environment, fresh=True).start()
        try:
            yield
        finally:
            assert worker.stop() == 0, worker.log_file.read_text()[-2000:]


async def until_subscribed(connection: Connection) -> None:
    """Wait until the worker holds its shards; it subscribes at once."""

    def is_subscribed() -> bool:
        held = connection.execute("SELECT count(*) FROM shard_lease").fetchone()
        return held is not None and held[0] == topics.SHARDS

    await asyncio.to_thread(eventually, is_subscribed, "the worker holds its shards")

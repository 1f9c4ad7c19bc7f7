"""The cloud's store for tests: its functions on a database of one's own, or answered by the test."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import ModuleType, TracebackType
from typing import Any, Self

from cloud_ingest.context import Context
from cloud_ingest.inbound import Publish
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
from cloud_store.base.database import Database
from cloud_store.merge.arrivals import ArrivedFrame, MergeReport
from cloud_store.merge.batch import Merger


class Session:
    """A database with one connection, as a worker opens it; `with` it, or close it."""

    def __init__(self, url: str) -> None:
        self.database = Database(url, application="test", connections_max=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.database.__exit__(None, None, None)


class MergeSession(Session):
    """Merges frames as a worker does."""

    def __init__(self, url: str, merger: Merger | None = None) -> None:
        super().__init__(url)
        self._merger = merger or Merger()

    def merge(self, frames: Sequence[ArrivedFrame]) -> MergeReport:
        """Merge a batch."""
        return self.database.call(self._merger.merge, frames)


class StoreModule(Session):
    """The functions of a module of `cloud_store` without their first argument: `StoreModule(twins, url).due(…)`."""

    def __init__(self, module: ModuleType, url: str) -> None:
        super().__init__(url)
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._module, name)
        return lambda *args, **kwargs: self.database.call(function, *args, **kwargs)


class AnsweredDatabase:
    """Stands for a `Database`: a test answers the functions that are run. One that is not answered is an error."""

    def __init__(self, answers: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        self._answers = dict(answers)

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As `Database.run`."""
        return self._answers[function](*args, **kwargs)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As `Database.call`."""
        return self._answers[function](*args, **kwargs)


class Failed(list[tuple[str, str | None, Exception]]):
    """What services reported as failed: (service, gateway, error)."""

    def __call__(self, service: str, gateway: str | None, error: Exception) -> None:
        self.append((service, gateway, error))


def published_nowhere(topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
    """A broker that nobody listens to."""
    del topic, payload, qos, retain


def context(
    answers: Mapping[Any, Any] | Database | None = None,
    publish: Publish = published_nowhere,
    mono_s: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> Context:
    """What a service stands on, with a database that a test answers, or a real one; failed items are in `.failed`."""
    database: Any = answers if isinstance(answers, Database) else AnsweredDatabase(answers or {})
    # Not validated: a test may want a bound that is smaller than any worker's.
    return Context(
        IngestSettings.model_construct(**settings), database, publish, WorkerMetrics(), Failed(), mono_s=mono_s
    )


@asynccontextmanager
async def running(loops: Iterable[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """The loops of a service, for the block; one that ends in it has failed."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
        assert not [task for task in tasks if task.done()], "a service ends only when it is cancelled"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

"""The worker's link ends when it is asked to, whatever aiomqtt makes of a cancellation."""

import asyncio
import contextlib
from typing import Any, cast

import pytest

from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
from cloud_ingest.transport.link import Link


class Forgetful:
    """A client whose answers come in the very moment of a cancellation, which is forgotten over them."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def _answer(self, *_: object, **__: object) -> None:
        self.asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    async def subscribe(self, *_: object, **__: object) -> None:
        """The first subscription is answered at once."""

    unsubscribe = publish = _answer


class Deaf:
    """Who would be told of subscriptions."""

    def subscribed(self, shards: frozenset[int]) -> None:
        """Part of `link.Receiving`."""


@pytest.mark.parametrize("work", ["_subscribe", "_publish"])
async def test_a_cancellation_that_comes_with_the_answer_is_heeded(work: str) -> None:
    """A worker that was asked to stop just then waited for itself for ever, and held its gateways' shards."""
    link, client = Link(IngestSettings(), cast("Any", Deaf()), WorkerMetrics()), Forgetful()
    link.serve(frozenset({1}))
    link.publish("topic", b"payload")
    task = asyncio.create_task(getattr(link, work)(client))
    await asyncio.sleep(0)  # the task begins
    await asyncio.sleep(0)  # and waits for the broker's answer
    link.serve(frozenset())  # what a worker does that stops: it unsubscribes
    await client.asked.wait()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=60)
    assert done == {task}
    assert task.cancelled()

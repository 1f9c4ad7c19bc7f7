"""The worker's link ends when it is asked to, whatever aiomqtt makes of a cancellation."""

import asyncio
import contextlib

import pytest

from cloud_ingest.inbound import Inbound
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
from cloud_ingest.transport.link import Link
from testbed.store import Failed
from wire_protocol import topics
from wire_protocol.topics import Channel


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


@pytest.mark.timeout(20)
@pytest.mark.parametrize("work", ["_subscribe", "_publish"])
async def test_a_cancellation_that_comes_with_the_answer_is_heeded(work: str) -> None:
    """A worker that was asked to stop just then waited for itself for ever, and held its gateways' shards."""
    link, client = Link(IngestSettings(), WorkerMetrics(), Failed(), lambda _: None), Forgetful()
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


async def test_a_message_that_its_handler_cannot_stand_ends_nothing() -> None:
    """One hostile payload would have ended the worker's link, and with it everybody's."""
    failed, handled = Failed(), list[str]()
    link = Link(IngestSettings(), WorkerMetrics(), failed, lambda _: None)

    def handle(inbound: Inbound) -> None:
        if inbound.sender == "gw-evil":
            raise RuntimeError("a defect")
        handled.append(inbound.sender)

    link.on(Channel.STATUS, handle)
    for gateway in ("gw-evil", "gw-good"):
        link._dispatch(topics.link(gateway, Channel.STATUS), b"{}", 0, retained=False)
    assert handled == ["gw-good"]
    assert [(service, gateway) for service, gateway, _ in failed] == [("link.up/status", "gw-evil")]

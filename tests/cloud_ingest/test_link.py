"""The worker's link hands each message to its channel's handler, whatever that makes of it."""

from cloud_ingest.inbound import Inbound
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
from cloud_ingest.transport.link import Link
from testbed.store import Failed
from wire_protocol import topics
from wire_protocol.topics import Channel


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

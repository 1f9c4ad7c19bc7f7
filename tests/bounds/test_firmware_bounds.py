"""The bounds of passing firmware images down to a fleet."""

import pytest

from cloud_ingest.inbound import Inbound
from cloud_ingest.services.images import Images
from cloud_ingest.token_bucket import TURNS_PER_S
from cloud_store.provisioning import firmware
from testbed.store import context, running
from testbed.turned_loop import now_s, pass_time, turned
from tests.firmware_sim.images import image, piece
from wire_protocol import topics
from wire_protocol.firmware import FirmwareChunk, FirmwareRequest
from wire_protocol.topics import Channel

RATE = 40.0
BODY = image("1.1.0")


def requested(gateway: str, payload: bytes) -> Inbound:
    """A request as it comes in."""
    return Inbound(gateway, Channel.FIRMWARE_REQUEST, topics.link(gateway, Channel.FIRMWARE_REQUEST), payload, 0)


@pytest.mark.bound("cloud.firmware_chunks_per_s_max")
@pytest.mark.bound("cloud.firmware_requests_waiting_max")
@turned
async def test_a_fleet_that_fetches_at_once_is_served_in_turn_and_slowly() -> None:
    """Ten thousand gateways that update together must leave the worker its time for frames."""
    asked, at_s = list[str](), list[float]()

    def answer(gateway: str, request: FirmwareRequest) -> FirmwareChunk:
        asked.append(gateway)
        return piece(BODY, request.offset, request.bytes)

    def publish(topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        del topic, payload, qos, retain
        at_s.append(now_s())

    images = Images(
        context(
            {firmware.piece: answer}, publish, now_s, firmware_chunks_per_s_max=RATE, firmware_requests_waiting_max=100
        )
    )
    images.requested(requested("gw-x", b"nonsense"))
    for offset in (0, 100):
        for number in range(200):
            ask = FirmwareRequest(sha256=piece(BODY, 0, 1).line.sha256, offset=offset, bytes=100)
            images.requested(requested(f"gw-{number}", ask.encode()))
    async with running(images.loops()):
        await pass_time(2 * 200 / RATE)
    assert asked == [f"gw-{number}" for number in range(100)]
    # A turn's worth may go out at once (`cloud_ingest.token_bucket`), the rest comes as the bucket fills.
    assert at_s[-1] - at_s[0] > 0.9 * (99 - RATE / TURNS_PER_S) / RATE

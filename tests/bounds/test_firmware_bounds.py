"""The bounds of passing firmware images down to a fleet."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from cloud_ingest.services.images import Images
from cloud_ingest.settings import IngestSettings
from testbed.turned_loop import now_s, pass_time, turned
from tests.firmware_sim.images import image, piece
from wire_protocol.firmware import FirmwareAsk, FirmwareChunk

RATE = 40.0
BODY = image("1.1.0")


@dataclass
class Shelf:
    """A store with one image."""

    asked: list[str] = field(default_factory=list)

    def piece(self, gateway: str, ask: FirmwareAsk) -> FirmwareChunk:
        """Part of `FirmwareStore`."""
        self.asked.append(gateway)
        return piece(BODY, ask.offset, ask.bytes)


@pytest.mark.bound("cloud.firmware_chunks_per_s_max")
@turned
async def test_a_fleet_that_fetches_at_once_is_served_in_turn_and_slowly() -> None:
    """Ten thousand gateways that update together must leave the worker its time for frames."""
    settings = IngestSettings.model_construct(firmware_chunks_per_s_max=RATE, site_asks_waiting_max=100)
    shelf, at_s = Shelf(), list[float]()
    images = Images(settings, cast("Any", shelf), lambda _topic, _payload: at_s.append(now_s()))
    images.asked("gw-x", b"nonsense")
    for offset in (0, 100):
        for number in range(200):
            ask = FirmwareAsk(sha256=piece(BODY, 0, 1).line.sha256, offset=offset, bytes=100)
            images.asked(f"gw-{number}", ask.encode())
    running = asyncio.create_task(images.run())
    await pass_time(2 * 200 / RATE)
    running.cancel()
    await asyncio.wait([running])
    assert shelf.asked == [f"gw-{number}" for number in range(100)]
    assert at_s[-1] - at_s[0] >= 0.99 * 99 / RATE

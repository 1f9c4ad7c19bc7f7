"""Simulated devices at the brokers of a site's gateways."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from firmware_sim.firmware.event_queue import Firmware
from firmware_sim.fleet.device import SimulatedDevice, radio_of
from firmware_sim.fleet.link import Link, LinkOptions
from firmware_sim.fleet.pace import Pace
from tests.end_to_end.sites import Post
from wire_protocol.address import BrokerAddress


@asynccontextmanager
async def device(post: Post, name: str, sampling_s_min: int = 1) -> AsyncIterator[Firmware]:
    """A simulated device at a gateway's broker."""
    firmware = Firmware(name=name, rng=random.Random(1), sampling_s_min=sampling_s_min)
    link = Link(
        post.name,
        BrokerAddress.parse(post.broker.url),
        SimulatedDevice(firmware, radio_of(1, name)),
        pace=Pace(1.0),
        options=LinkOptions(),
        rng=random.Random(1),
    )
    running = asyncio.create_task(link.run())
    try:
        yield firmware
    finally:
        running.cancel()
        await asyncio.wait([running])

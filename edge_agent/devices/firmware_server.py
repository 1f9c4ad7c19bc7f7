"""Pieces of firmware images for this gateway's devices, no faster than is good for readings and scans.

Invariant: the latest request of each device is kept, the number of waiting devices is bounded, nothing is sent while
more is waiting for the ledger than a commit takes.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from edge_agent.provisioning.images import ImageStore
from wire_protocol.firmware import DEVICE_CHUNK_BYTES, FirmwareChunk, FirmwareChunkLine, FirmwareRequest

ASKS_WAITING_MAX: Final = 1_000
BUSY_JOBS: Final = 100
BUSY_LOOK_S: Final = 0.05

log = structlog.get_logger("edge_agent.provisioning.firmware")


@dataclass(slots=True)
class FirmwareServer:
    """Answers devices, those that asked first before the others.

    Args:
        shelf: where images are kept.
        publish: gives a device a piece.
        depth: how many jobs wait for the ledger.
        chunks_per_s_max: pieces a second, for all devices.
    """

    image_store: ImageStore
    publish: Callable[[str, bytes], Any]
    depth: Callable[[], int]
    chunks_per_s_max: float
    _asks: dict[str, FirmwareRequest] = field(default_factory=dict)
    _work: asyncio.Event = field(default_factory=asyncio.Event)

    def requested(self, device: str, ask: FirmwareRequest) -> None:
        """A device requests a piece. Call it in the event loop's thread."""
        if device in self._asks or len(self._asks) < ASKS_WAITING_MAX:
            self._asks[device] = ask
            self._work.set()

    async def run(self) -> None:
        """Answer until cancelled."""
        await asyncio.to_thread(self.image_store.check)
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            await self._work.wait()
            self._work.clear()
            while self._asks:
                await asyncio.sleep(max(0.0, next_s - loop.time()))
                if self.depth() > BUSY_JOBS:
                    await asyncio.sleep(BUSY_LOOK_S)
                    continue
                device = next(iter(self._asks))
                await self._answer(device, self._asks.pop(device))
                next_s = max(next_s, loop.time()) + 1 / self.chunks_per_s_max

    async def _answer(self, device: str, ask: FirmwareRequest) -> None:
        """Send a piece; what is not here is passed over, as it was never offered."""
        wanted = min(ask.bytes, DEVICE_CHUNK_BYTES)
        try:
            size, piece = await asyncio.to_thread(self.image_store.read, ask.sha256, ask.offset, wanted)
        except OSError as error:
            # A bad sector under an image is no reason to keep scans waiting.
            log.warning("image_not_readable", image=ask.sha256, reason=str(error))
            await asyncio.to_thread(self.image_store.forget, ask.sha256)
            return
        if not piece:
            return
        digest = hashlib.sha256(piece).hexdigest()
        line = FirmwareChunkLine(sha256=ask.sha256, offset=ask.offset, size=size, digest=digest)
        self.publish(device, FirmwareChunk(line, piece).encode())

"""Firmware images: answers gateways that ask for a piece.

Invariant: bounded. The latest ask of each gateway is kept, and so many pieces are sent per second at most.
"""

import asyncio
from collections.abc import Callable

import structlog

from cloud_ingest.settings import IngestSettings
from cloud_ingest.threads import uninterrupted
from cloud_store.base.errors import StoreError
from cloud_store.provisioning.firmware import FirmwareStore
from wire_protocol import topics
from wire_protocol.firmware import FirmwareAsk
from wire_protocol.messages import InvalidMessage
from wire_protocol.topics import Channel

RETRY_S = 1.0
_LOG = structlog.get_logger()


class Images:
    """Passes firmware images down to gateways that ask for them."""

    def __init__(self, settings: IngestSettings, store: FirmwareStore, publish: Callable[[str, bytes], None]) -> None:
        self._settings, self._store, self._publish = settings, store, publish
        self._asks: dict[str, FirmwareAsk] = {}
        self._work = asyncio.Event()

    def asked(self, gateway: str, payload: bytes) -> None:
        """A gateway asks; the latest ask of each is kept until it is answered."""
        try:
            ask = FirmwareAsk.decode(payload)
        except InvalidMessage as error:
            _LOG.warning("ask_refused", gateway=gateway, reason=str(error))
            return
        if gateway in self._asks or len(self._asks) < self._settings.site_asks_waiting_max:
            self._asks[gateway] = ask
            self._work.set()

    async def run(self) -> None:
        """Answer until cancelled, each gateway in its turn."""
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                while self._asks:
                    await asyncio.sleep(max(0.0, next_s - loop.time()))
                    gateway, ask = next(iter(self._asks.items()))
                    await self._answer(gateway, ask)
                    next_s = max(next_s, loop.time()) + 1 / self._settings.firmware_chunks_per_s_max
            except StoreError as error:
                _LOG.warning("images_failed", reason=str(error), hint=error.hint)
                self._work.set()
                await asyncio.sleep(RETRY_S)

    async def _answer(self, gateway: str, ask: FirmwareAsk) -> None:
        chunk = await uninterrupted(lambda: self._store.piece(gateway, ask))
        self._asks.pop(gateway, None)
        if chunk is not None:
            self._publish(topics.link(gateway, Channel.FIRMWARE), chunk.encode())

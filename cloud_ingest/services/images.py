"""Firmware images: answers gateways that request a piece.

Invariant: bounded. The latest request of each gateway is kept, and the pieces sent per second are bounded.
"""

from collections.abc import Coroutine, Iterator
from typing import Any

import structlog

from cloud_ingest.context import Context
from cloud_ingest.inbound import Inbound
from cloud_ingest.mailbox import Mailbox
from cloud_ingest.token_bucket import TokenBucket
from cloud_store.provisioning import firmware
from wire_protocol import topics
from wire_protocol.firmware import FirmwareRequest
from wire_protocol.messages import InvalidMessage
from wire_protocol.topics import Channel

_LOG = structlog.get_logger()


class Images:
    """Passes firmware images down to gateways that request them."""

    def __init__(self, context: Context) -> None:
        self._context, settings = context, context.settings
        self._requests: Mailbox[str, FirmwareRequest] = context.mailbox(
            "firmware", settings.firmware_requests_waiting_max
        )
        self._pieces = TokenBucket(settings.firmware_chunks_per_s_max, context.mono_s)

    def requested(self, inbound: Inbound) -> None:
        """A gateway requests a piece."""
        try:
            request = FirmwareRequest.decode(inbound.payload)
        except InvalidMessage as error:
            _LOG.warning("request_refused", service="firmware", gateway=inbound.sender, reason=str(error))
        else:
            self._requests.put(inbound.sender, request, len(inbound.payload))

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.serve(self._requests, self._answer, rate=self._pieces)

    async def _answer(self, gateway: str, request: FirmwareRequest) -> None:
        chunk = await self._context.database.run(firmware.piece, gateway, request)
        if chunk is not None:
            self._context.publish(topics.link(gateway, Channel.FIRMWARE), chunk.encode())

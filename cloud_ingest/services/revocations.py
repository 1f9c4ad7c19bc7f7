"""Revoked gateways are disconnected: the worker that serves a gateway's shard ends its live connection.

The registry refuses what the gateway sends from then on, a revocation list keeps it from coming back; this ends what is
open, wherever the gateway was revoked. `stocktide cloud gateway revoke` does the same from where it runs, at once;
twice does no harm.

Invariant: a gateway is disconnected once for each time it was revoked, and so few at a time that a worker's own link
lives.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final

import structlog

from cloud_ingest.context import Context
from cloud_ingest.mailbox import WakeUp
from cloud_store.identity import revocations
from cloud_store.identity.revocations import PendingDisconnect
from command_line.errors import StocktideError

AT_ONCE_MAX: Final = 16
RETRY_S: Final = 1.0
_LOG = structlog.get_logger()


class Revocations:
    """Disconnects the revoked gateways of the shards that this worker serves."""

    def __init__(self, context: Context, disconnect: Callable[[str], Awaitable[None]]) -> None:
        self._context, self._database, self._disconnect = context, context.database, disconnect
        self._shards: frozenset[int] = frozenset()
        self.wake = WakeUp("revocations")

    def serve(self, shards: frozenset[int]) -> None:
        """Gateways of these shards are disconnected from here."""
        self._shards = shards
        self.wake()

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.serve(self.wake, self._disconnect_due)

    async def _disconnect_due(self, _key: None, _value: None) -> None:
        while pending := await self._database.run(revocations.due, self._shards, limit=AT_ONCE_MAX):
            ended = await asyncio.gather(*(self._ended(cut) for cut in pending))
            for cut in (cut for cut, done in zip(pending, ended, strict=True) if done):
                await self._database.run(revocations.done, cut)
                self._context.metrics.pending.inc()
                _LOG.info("gateway_cut", gateway=cut.gateway)
            if not all(ended):
                # The broker is away, or refuses us: the wish still stands in the database.
                await asyncio.sleep(RETRY_S)

    async def _ended(self, cut: PendingDisconnect) -> bool:
        try:
            await self._disconnect(cut.gateway)
        except StocktideError as error:
            _LOG.warning("gateway_not_cut", gateway=cut.gateway, reason=str(error), hint=error.hint)
            return False
        except Exception as error:  # noqa: BLE001 - one that cannot be cut must not keep the others connected
            self._context.failed("revocations", cut.gateway, error)
            return False
        return True

"""Revoked gateways are cut: whoever serves a gateway's shard ends its live connection, wherever it was revoked.

The registry refuses what the gateway sends from then on, a revocation list keeps it from coming back; this ends what is
open. `stocktide cloud gateway revoke` does the same from where it runs, at once; twice does no harm.

Invariant: a gateway is cut once for each time it was revoked, and so few at a time that a worker's own link lives.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from cloud_ingest.errors import IngestError
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.threads import uninterrupted
from cloud_store.base.errors import StoreError
from cloud_store.identity.revocations import Cut, RevocationStore

AT_ONCE_MAX: Final = 16
RETRY_S: Final = 1.0
_LOG = structlog.get_logger()


class Revocations:
    """Cuts the revoked gateways of the shards that this worker serves."""

    def __init__(
        self, store: RevocationStore, disconnect: Callable[[str], Awaitable[None]], metrics: WorkerMetrics
    ) -> None:
        self._store, self._disconnect, self._metrics = store, disconnect, metrics
        self._shards: frozenset[int] = frozenset()
        self._work = asyncio.Event()

    def serve(self, shards: frozenset[int]) -> None:
        """Gateways of these shards are cut from here."""
        self._shards = shards
        self.wake()

    def wake(self) -> None:
        """Somebody may have been revoked."""
        self._work.set()

    async def run(self) -> None:
        """Cut until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                while cuts := await uninterrupted(lambda: self._store.due(self._shards, limit=AT_ONCE_MAX)):
                    ends = await asyncio.gather(
                        *(self._disconnect(cut.gateway) for cut in cuts), return_exceptions=True
                    )
                    for cut in (cut for cut, problem in zip(cuts, ends, strict=True) if problem is None):
                        await self._note(cut)
                    for problem in filter(None, ends):
                        raise problem
            except (StoreError, IngestError) as error:
                _LOG.warning("gateway_not_cut", reason=str(error), hint=error.hint)
                self.wake()
                await asyncio.sleep(RETRY_S)

    async def _note(self, cut: Cut) -> None:
        await uninterrupted(lambda: self._store.done(cut))
        self._metrics.cuts.inc()
        _LOG.info("gateway_cut", gateway=cut.gateway)

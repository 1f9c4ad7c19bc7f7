"""A worker disconnects revoked gateways, and outlives whatever goes wrong while it does."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.services import revocations
from cloud_ingest.services.revocations import Revocations
from cloud_ingest.settings import IngestSettings
from cloud_store.identity.revocations import Cut


class OneRevoked:
    """A store with one gateway to disconnect."""

    def __init__(self) -> None:
        self.noted = list[Cut]()
        self.looked = asyncio.Semaphore(0)
        self._loop = asyncio.get_running_loop()

    def due(self, _shards: Iterable[int], *, limit: int) -> list[Cut]:
        """Part of `RevocationStore`."""
        assert limit > 0
        self._loop.call_soon_threadsafe(self.looked.release)
        return [Cut("gw-1", datetime(2026, 1, 1, tzinfo=UTC))]

    def done(self, cut: Cut) -> None:
        """Part of `RevocationStore`."""
        self.noted.append(cut)


@pytest.mark.parametrize(
    "settings",
    [
        {"mqtt_url": "mqtts://127.0.0.1:1", "mqtt_ca_file": "/no/such/file.pem"},  # IngestError: while it is renewed
        {"mqtt_url": "mqtt://127.0.0.1:1"},  # EvictionFailed: nobody answers
    ],
    ids=["no-tls-files", "no-broker"],
)
async def test_a_gateway_that_cannot_be_disconnected_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Files of the broker's authority that were missing for a moment ended the worker, and every other one with it."""
    monkeypatch.setattr(revocations, "RETRY_S", 0.0)
    store = OneRevoked()
    made = Revocations(IngestSettings(**settings), cast("Any", store), WorkerMetrics())
    running = asyncio.create_task(made.run())
    made.serve(frozenset({1}))
    async with asyncio.timeout(10):
        for _ in range(3):
            looking = asyncio.create_task(store.looked.acquire())
            await asyncio.wait([looking, running], return_when=asyncio.FIRST_COMPLETED)
            assert not running.done(), running.exception()
    running.cancel()
    await asyncio.wait([running])
    assert store.noted == [], "nobody may believe that its connection has ended"

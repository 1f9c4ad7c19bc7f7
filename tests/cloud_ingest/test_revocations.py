"""A worker disconnects revoked gateways, and outlives whatever goes wrong while it does."""

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from cloud_ingest.services import revocations as service
from cloud_ingest.services.revocations import Revocations
from cloud_ingest.transport.eviction import evict
from cloud_store.identity import revocations
from cloud_store.identity.revocations import PendingDisconnect
from testbed.store import context, running


@pytest.mark.parametrize(
    "broker",
    [
        {"mqtt_url": "mqtts://127.0.0.1:1", "ca_file": "/no/such/file.pem"},  # IngestError: while it is renewed
        {"mqtt_url": "mqtt://127.0.0.1:1", "ca_file": None},  # EvictionFailed: nobody answers
    ],
    ids=["no-tls-files", "no-broker"],
)
async def test_a_gateway_that_cannot_be_disconnected_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, broker: dict[str, Any]
) -> None:
    """Files of the broker's authority that were missing for a moment ended the worker, and every other one with it."""
    monkeypatch.setattr(service, "RETRY_S", 0.0)
    looked, noted = asyncio.Semaphore(0), list[PendingDisconnect]()

    def due(_shards: frozenset[int], *, limit: int) -> list[PendingDisconnect]:
        assert limit > 0
        looked.release()
        return [PendingDisconnect("gw-1", datetime(2026, 1, 1, tzinfo=UTC))]

    disconnect = partial(evict, broker["mqtt_url"], ca_file=broker["ca_file"])
    made = Revocations(context({revocations.due: due, revocations.done: noted.append}), disconnect)
    made.serve(frozenset({1}))
    async with running(made.loops()), asyncio.timeout(10):
        for _ in range(3):
            await looked.acquire()
    assert noted == [], "nobody may believe that its connection has ended"

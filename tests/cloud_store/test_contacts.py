"""What gateways say about themselves, on real TimescaleDB.

Broken when one gateway's status keeps the others' from being stored, and with them the answers to all.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from cloud_store import registry
from cloud_store.connection import Connection
from cloud_store.contacts import ContactStore
from tests.cloud_store.histories import BOOT, EPOCH, NOW_MS
from wire_protocol.messages import ClockStatus, GatewayStatus, StreamStatus

HUGE = (1 << 62) - 1
FAR = StreamStatus(last_seq=HUGE, sealed_frame=0, acked_frame=0, acked_seq=0)
HOSTILE: dict[str, dict[str, Any]] = {
    "NUL": {"version": "1\0"},
    "clock": {"clock": ClockStatus.model_construct(boot=BOOT, offset_ms=10**30)},
    "clock behind": {"clock": ClockStatus.model_construct(boot=BOOT, offset_ms=-(10**30))},
    "backlog": {"streams": {"ledger": FAR, "readings": FAR}, "dead_letters": HUGE},
}


@pytest.fixture
def store(connection: Connection, database_url: str) -> Iterator[ContactStore]:
    """A store, and two gateways in the registry."""
    registry.add_site(connection, "acme", "berlin")
    for gateway in ("gw-a", "gw-b"):
        registry.add_gateway(connection, "acme", "berlin", gateway)
    with closing(ContactStore(database_url)) as made:
        yield made


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_status_holds_up_nobody(store: ContactStore, connection: Connection, said: dict[str, Any]) -> None:
    """The worker stores statuses in batches and tries again for ever: one that fails would stop them all."""
    honest = GatewayStatus(state="online", epoch=EPOCH, version="1")
    store.record([("gw-a", honest.model_copy(update=said), NOW_MS), ("gw-b", honest, NOW_MS)])
    assert connection.execute("SELECT count(*) FROM gateway_status").fetchone() == (2,)

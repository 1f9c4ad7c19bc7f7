"""What gateways say about themselves, on real TimescaleDB.

Broken when one gateway's status keeps the others' from being stored, and with them the answers to all.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from cloud_store.base.connection import Connection
from cloud_store.merge import cursors, presence
from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.presence import Contacts
from cloud_store.tenancy import registry
from testbed.store import MergeSession, StoreModule
from tests.cloud_store.histories import BOOT, EPOCH, NOW_MS, Chain, movement
from wire_protocol import clock
from wire_protocol.messages import ClockStatus, GatewayStatus, StreamStatus

HUGE = (1 << 62) - 1
FAR = StreamStatus(last_seq=HUGE, sealed_frame=0, acked_frame=0, acked_seq=0)
HLC = clock.pack(NOW_MS)
HOSTILE: dict[str, dict[str, Any]] = {
    "NUL": {"version": "1\0"},
    "clock": {"clock": ClockStatus.model_construct(boot=BOOT, offset_ms=10**30)},
    "clock behind": {"clock": ClockStatus.model_construct(boot=BOOT, offset_ms=-(10**30))},
    "backlog": {"streams": {"ledger": FAR, "readings": FAR}, "dead_letters": HUGE},
}


@pytest.fixture
def store(connection: Connection, database_url: str) -> Iterator[StoreModule]:
    """A store, and two gateways in the registry."""
    registry.add_site(connection, "acme", "berlin")
    for gateway in ("gw-a", "gw-b"):
        registry.add_gateway(connection, "acme", "berlin", gateway)
    with closing(StoreModule(presence, database_url)) as made:
        yield made


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_status_holds_up_nobody(store: StoreModule, connection: Connection, said: dict[str, Any]) -> None:
    """The worker stores statuses in batches and tries again forever: one that fails would stop them all."""
    honest = GatewayStatus(state="online", epoch=EPOCH, version="1")
    store.record([("gw-a", honest.model_copy(update=said), NOW_MS), ("gw-b", honest, NOW_MS)])
    assert connection.execute("SELECT count(*) FROM gateway_status").fetchone() == (2,)


def test_what_was_rejected_is_told_again_on_contact(
    store: StoreModule, connection: Connection, database_url: str
) -> None:
    """The acknowledgement that told it may be lost, and the gateway would count the entry forever."""
    chain, bad = Chain("gw-a"), movement(HLC, "receive", "@supplier", "A-1").model_copy(update={"quantity": -1})
    with closing(MergeSession(database_url)) as merger:
        merger.merge([chain.seal([movement(HLC, "receive", "@supplier", "A-1"), bad]), Chain("gw-b").seal([bad])])
    log = LogKey("gw-a", "ledger", EPOCH)
    del store
    told = cursors.verdicts(connection, [log, log._replace(gateway="gw-unknown")], limit=presence.VERDICT_FRAMES_MAX)
    assert {key: [verdict.seq for verdict in verdicts] for key, verdicts in told.items()} == {log: [2]}
    assert "quantity" in told[log][0].reason
    assert cursors.verdicts(connection, [], limit=presence.VERDICT_FRAMES_MAX) == {}


def test_what_a_gateway_says_of_itself_is_an_alarm_while_it_is_so(store: StoreModule, connection: Connection) -> None:
    """Nobody in the cloud sees a gateway's own broker; and one that says so by turns must not fill the table."""
    well = GatewayStatus(state="online", epoch=EPOCH, version="1")
    ill = well.model_copy(update={"problems": {"devices": "Nothing listens on port 1883.\0", "file": "table x"}})

    def say(status: GatewayStatus, gateway: str = "gw-a") -> list[tuple[Any, ...]]:
        store.exchange(Contacts((), {gateway: (status, NOW_MS)}, frozenset(), frozenset()))
        return connection.execute("SELECT gateway, kind, times, cleared_at IS NULL FROM alarm").fetchall()

    assert say(well) == []
    assert say(ill) == [("gw-a", "gateway-problem", 1, True)]
    assert say(ill) == [("gw-a", "gateway-problem", 1, True)], "the same again is no news"
    assert say(well, "gw-b") == [("gw-a", "gateway-problem", 1, True)]
    assert say(well) == [("gw-a", "gateway-problem", 1, False)]
    for number in range(10):
        assert len(say(ill if number % 2 else well)) == 1
    assert say(ill, "gw-unknown") == say(ill)
    (detail,) = connection.execute("SELECT detail FROM alarm").fetchone() or ("",)
    assert detail.startswith("devices: Nothing listens")
    offline = ill.model_copy(update={"state": "offline", "problems": None})
    assert say(offline)[0][3], "one that says nothing of it is not well"

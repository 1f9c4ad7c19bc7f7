"""Revocations in a real database: who is to be disconnected, and what takes that back."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from cloud_store.base.connection import Connection
from cloud_store.identity import revocations
from cloud_store.tenancy import registry
from testbed.store import StoreModule
from wire_protocol import topics

pytestmark = pytest.mark.services
ALL_SHARDS = range(topics.SHARDS)


@pytest.fixture
def store(connection: Connection, database_url: str) -> Iterator[StoreModule]:
    """A store, and one gateway with a certificate."""
    registry.add_site(connection, "acme", "berlin")
    registry.add_gateway(connection, "acme", "berlin", "gw-1")
    connection.execute(
        "INSERT INTO certificate (tenant_id, gateway_id, issuer, serial, public_key, pem, not_after)"
        " SELECT tenant_id, gateway_id, 'ca', 1, 'key', 'pem', now() + interval '1 day' FROM gateway"
    )
    with closing(StoreModule(revocations, database_url)) as made:
        yield made


def due(store: StoreModule) -> list[str]:
    """The gateways that a worker is to disconnect."""
    return [cut.gateway for cut in store.due(ALL_SHARDS, limit=10)]


@pytest.mark.parametrize(
    "revoke",
    ["UPDATE gateway SET state = 'disabled'", "UPDATE certificate SET revoked_at = now()"],
    ids=["registry", "certificate"],
)
def test_a_gateway_that_is_enabled_again_is_still_disconnected(
    store: StoreModule, connection: Connection, revoke: str
) -> None:
    """No worker has ended its connection yet, which may be a thief's: enabling the gateway must not keep it open."""
    connection.execute(revoke)
    connection.execute("UPDATE gateway SET state = 'disabled'")
    connection.execute("UPDATE gateway SET state = 'active'")
    assert due(store) == ["gw-1"]
    [cut] = store.due(ALL_SHARDS, limit=10)
    store.done(cut)
    assert due(store) == []
    connection.execute("UPDATE gateway SET state = 'disabled'")
    assert due(store) == ["gw-1"], "it was revoked again"


def test_a_gateway_that_nobody_revoked_is_not_disconnected(store: StoreModule, connection: Connection) -> None:
    """Whatever else changes in its row."""
    connection.execute("UPDATE gateway SET state = state")
    assert due(store) == []

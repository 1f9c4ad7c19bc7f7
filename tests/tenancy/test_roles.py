"""A server on which none of ours is a superuser. Broken when the product needs one, or a role can do too much.

A server of its own, because roles belong to the whole server.
"""

from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest
from psycopg import errors as pg

from cloud_api.app import create
from cloud_api.settings import ApiSettings
from cloud_store.base import migrations
from cloud_store.base.connection import connect
from cloud_store.base.errors import NotMigrated, StoreError
from cloud_store.base.leases import LeaseSession
from cloud_store.reports import snapshots
from cloud_store.tenancy import database_users, registry
from testbed.services import PrivateDatabase
from testbed.store import MergeSession
from tests.cloud_api.serving import key, served
from tests.cloud_store.histories import NOW_MS, Chain, count, movement
from wire_protocol import clock
from wire_protocol.entries import LedgerEntry
from wire_protocol.stock import Cell

pytestmark = pytest.mark.slow


@pytest.fixture
def address(private_database: Callable[..., PrivateDatabase]) -> Callable[[str], str]:
    """The address of an empty database that `plain` owns, for a login; the server asks for no passwords."""
    server = private_database()
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute("CREATE ROLE plain LOGIN CREATEROLE")
        admin.execute("CREATE ROLE powerless LOGIN")
        admin.execute("CREATE DATABASE shop OWNER plain TEMPLATE template0")
        admin.execute("CREATE DATABASE stall OWNER powerless TEMPLATE template0")
    return lambda login: server.url_of("stall" if login == "powerless" else "shop").replace("postgres@", f"{login}@")


def test_no_part_needs_a_superuser(address: Callable[[str], str]) -> None:
    """Owner, worker, API and dashboard as four logins, each with its role alone."""
    owner = address("plain")
    assert len(migrations.apply(owner)) >= 6
    with connect(owner, application="test") as connection:
        for login in ("worker", "web"):
            connection.execute(f"CREATE ROLE {login} LOGIN".encode())
        connection.execute("GRANT stocktide_ingest TO worker")
        connection.execute("GRANT stocktide_api TO web")
        for tenant in ("acme", "other"):
            registry.add_tenant(connection, tenant)
            registry.add_site(connection, tenant, "berlin")
            registry.add_gateway(connection, tenant, "berlin", f"gw-{tenant}")
        database_users.create(connection, "dash_one", registry.tenant_id(connection, "acme"))
        with closing(MergeSession(address("worker"))) as merger, LeaseSession(address("worker"), "test") as leases:
            assert leases.acquire([1, 2]) == {1, 2}
            for tenant, number in (("acme", 5), ("other", 3)):
                hlc = clock.pack(NOW_MS)
                entries: list[LedgerEntry] = [
                    movement(hlc, "receive", "@supplier", "A-1", 7),
                    count(hlc + 1, "A-1", number),
                ]
                assert merger.merge([Chain(f"gw-{tenant}").seal(entries)]).entries == 2
        assert snapshots.balances(connection, "acme", "berlin")[Cell("A-1", "screw", "")] == 5
        with served(create(ApiSettings(database_url=address("web")))) as client:
            rows = client.get("/v1/stock", key(connection, "acme")).json()["items"]
            assert [(row["location"], row["on_hand"]) for row in rows] == [("A-1", 5)]
            assert len(client.get("/v1/movements", key(connection, "other")).json()["items"]) == 1
        with closing(psycopg.connect(address("dash_one"))) as dashboard:
            assert dashboard.execute("SELECT on_hand FROM stock WHERE NOT virtual").fetchall() == [(5,)]
            assert dashboard.execute("SELECT count(*) FROM movement").fetchone() == (1,)
        database_users.drop(connection, "dash_one")
    assert migrations.apply(owner) == []


def test_a_worker_and_an_api_login_can_do_their_part_only(address: Callable[[str], str]) -> None:
    """A worker reads no keys and makes no tenants; the API writes no stock; a dashboard holds nothing of workers."""
    owner = address("plain")
    migrations.apply(owner)
    with connect(owner, application="test") as connection:
        connection.execute("CREATE ROLE worker LOGIN; CREATE ROLE web LOGIN")
        connection.execute("GRANT stocktide_ingest TO worker; GRANT stocktide_api TO web")
        registry.add_tenant(connection, "acme")
        database_users.create(connection, "dash_two", registry.tenant_id(connection, "acme"))
    of_workers = (
        "DELETE FROM shard_lease",
        "SELECT * FROM shard_lease",
        "SELECT * FROM site_digest FOR UPDATE",
        "SELECT stocktide_end_overdue_sessions(1, 1)",
        "UPDATE item SET merged_into = 1",
        "SET ROLE stocktide_ingest",
    )
    refused = {
        "worker": (
            "SELECT * FROM api_key",
            "SELECT * FROM database_user",
            "INSERT INTO audit_log DEFAULT VALUES",
            "SET ROLE stocktide_api",
            "SET ROLE stocktide_owner",
        ),
        "web": (
            "UPDATE balance SET on_hand = 0",
            "DELETE FROM movement",
            "SELECT digest FROM api_key",
            "UPDATE tenant_quota SET gateways_max = 9",
            "SELECT * FROM public.movement",
            *of_workers,
        ),
        "dash_two": (
            "CREATE TEMPORARY TABLE t ()",
            "SET temp_file_limit = -1",
            "SELECT * FROM public.movement",
            "SET ROLE stocktide_api",
            *of_workers,
        ),
    }
    for login, statements in refused.items():
        writing = "-c default_transaction_read_only=off"  # which a dashboard may set, and which gives it nothing
        with closing(psycopg.connect(address(login), autocommit=True, options=writing)) as session:
            for statement in statements:
                with pytest.raises(pg.InsufficientPrivilege):
                    session.execute(statement.encode())
    with connect(owner, application="test") as connection:
        database_users.drop(connection, "dash_two")


def test_what_is_missing_is_said(address: Callable[[str], str]) -> None:
    """An owner that may not make roles is told which; a worker before the migration is told to migrate."""
    with pytest.raises(StoreError, match="give it CREATEROLE"):
        migrations.apply(address("powerless"))
    with pytest.raises(NotMigrated), LeaseSession(address("plain"), "test"):
        pass
    migrations.apply(address("plain"))
    with pytest.raises(StoreError, match="permission denied") as caught, LeaseSession(address("powerless"), "test"):
        pass
    assert caught.value.hint == "GRANT stocktide_ingest TO powerless"

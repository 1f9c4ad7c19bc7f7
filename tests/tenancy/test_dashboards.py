"""What a dashboard's login can hold, set and leave behind. Broken when it stops a worker, or cannot be taken away."""

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg import errors as pg
from psycopg.sql import SQL, Identifier

from cloud_store.base import leases, migrations
from cloud_store.base.connection import Connection, connect
from cloud_store.base.errors import StoreError, UnknownName
from cloud_store.base.leases import LeaseSession
from cloud_store.tenancy import database_users, registry
from cloud_store.tenancy.database_users import RoleInUse
from testbed.eventually import eventually
from testbed.worker_process import Workers
from tests.cloud_ingest.sites import Site
from tests.tenancy.holding import hold_everything

SETTLED_S = 90.0


@pytest.fixture
def dashboard(connection: Connection, database_url: str, dashboard_login: Callable[[str], str]) -> Iterator[Connection]:
    """A session of a dashboard's login, with every limit that it may lift lifted; its tenant is acme."""
    registry.add_tenant(connection, "acme")
    name = dashboard_login("acme")
    connection.execute(SQL("ALTER ROLE {} PASSWORD NULL").format(Identifier(name)))
    with psycopg.connect(database_url, user=name, autocommit=True) as session:
        session.execute("SET statement_timeout = 0")
        session.execute("SET default_transaction_read_only = off")
        session.execute("SET idle_in_transaction_session_timeout = 0")
        yield session


@pytest.mark.slow
@pytest.mark.services
async def test_workers_merge_while_a_dashboard_holds_every_lock_it_may_take(
    dashboard: psycopg.Connection[tuple[object, ...]],
    worker: Workers,
    site_at: Callable[[str], Site],
    database_url: str,
    mqtt_url: str,
) -> None:
    """A new worker gets its shards, and every frame of another tenant is merged and acknowledged."""
    site = site_at(database_url)
    site.add_gateway(frames=20)
    hold_everything(dashboard, 1_000)
    worker("one", database_url, mqtt_url)
    async with site.fleet(mqtt_url) as fleet:
        await fleet.settled(SETTLED_S)
    site.require_agreement()


def test_a_dashboard_cannot_lease_shards_nor_count_as_a_worker(
    dashboard: psycopg.Connection[tuple[object, ...]], database_url: str
) -> None:
    """Leases are rows of tables that it may neither read nor write."""
    for statement in (
        "SELECT * FROM shard_lease",
        "INSERT INTO worker_session (pid) VALUES (1)",
        "UPDATE shard_lease SET session_id = 0",
        "LOCK TABLE shard_lease IN ACCESS SHARE MODE",
        "SELECT FROM site FOR SHARE",
        "SELECT stocktide_end_overdue_sessions(0, 0)",
        "LOCK TABLE stocktide_migration",
    ):
        with pytest.raises(pg.InsufficientPrivilege), dashboard.transaction():
            dashboard.execute(statement.encode())
    with LeaseSession(database_url, "test") as session:
        assert session.acquire(range(64)) == frozenset(range(64))
        assert session.survey().workers == 1


def test_leases_go_with_their_session_and_with_a_frozen_one_after_a_while(
    database_url: str, connection: Connection
) -> None:
    """A killed worker's at once; one that is not seen any more when it has been so for long enough."""
    with LeaseSession(database_url, "test") as other:
        killed = LeaseSession(database_url, "test").__enter__()
        assert killed.acquire([1, 2]) == {1, 2}
        assert other.acquire([2, 3]) == {3}
        killed._session.close()
        eventually(lambda: other.acquire([1, 2]) == {1, 2})
        with LeaseSession(database_url, "test") as frozen:
            assert frozen.acquire([7]) == {7}
            assert other.survey() == (2, frozenset({1, 2, 3}), frozenset({7}))
            long_ago = "UPDATE worker_session SET seen_at = now() - %s * interval '1 second' WHERE session_id = %s"
            connection.execute(long_ago.encode(), [leases.UNSEEN_S_MAX + 1, frozen._session_id])
            assert other.survey().workers == 1
            assert other.acquire([7]) == {7}
            assert frozen.survey().mine == frozenset()


def test_a_login_ends_at_once_whatever_it_has_left_behind(
    dashboard: psycopg.Connection[tuple[object, ...]], connection: Connection, database_url: str
) -> None:
    """Large objects were enough to keep a dropped person reading."""
    name = dashboard.info.user
    connection.execute("GRANT EXECUTE ON FUNCTION lo_create(oid) TO PUBLIC")  # as on a server we do not own
    dashboard.execute("SELECT lo_create(0)")
    assert dashboard.execute("SELECT name FROM tenant").fetchall() == [("acme",)]
    database_users.drop(connection, name)
    with pytest.raises(psycopg.OperationalError):
        dashboard.execute("SELECT name FROM tenant")
    with pytest.raises(psycopg.OperationalError), psycopg.connect(database_url, user=name):
        pass
    assert [row for row in database_users.listed(connection) if row["name"] == name] == []


def test_a_role_that_cannot_be_removed_yet_is_ended_all_the_same(
    dashboard: psycopg.Connection[tuple[object, ...]], connection: Connection, database_url: str
) -> None:
    """What it owns in another database is not ours to drop; the same call goes on when that is gone."""
    name = dashboard.info.user
    elsewhere = f"other_{secrets.token_hex(4)}"
    connection.execute(
        SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(Identifier(elsewhere), Identifier(name))
    )
    try:
        with pytest.raises(RoleInUse, match="is ended"):
            database_users.drop(connection, name)
        with pytest.raises(psycopg.OperationalError), psycopg.connect(database_url, user=name):
            pass
        assert [row["state"] for row in database_users.listed(connection) if row["name"] == name] == ["ended"]
    finally:
        connection.execute(SQL("DROP DATABASE {}").format(Identifier(elsewhere)))
    database_users.drop(connection, name)
    with pytest.raises(UnknownName):
        database_users.drop(connection, name)


def test_a_dashboard_makes_no_tables_of_any_kind(dashboard: psycopg.Connection[tuple[object, ...]]) -> None:
    """A temporary table fills the same disk, and a large object too."""
    for statement in ("CREATE TEMPORARY TABLE t (x integer)", "CREATE TABLE t (x integer)", "SELECT lo_create(0)"):
        with pytest.raises(pg.InsufficientPrivilege):
            dashboard.execute(statement.encode())
    with pytest.raises(pg.InsufficientPrivilege):
        dashboard.execute("SET temp_file_limit = -1")


def test_sessions_that_take_longer_than_they_may_are_ended(
    dashboard: psycopg.Connection[tuple[object, ...]],
    connection: Connection,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An idle transaction and an endless statement; a worker does it, whose role may end no other session."""
    monkeypatch.setattr(database_users, "STATEMENT_TIMEOUT_MS", 0)
    monkeypatch.setattr(database_users, "IDLE_IN_TRANSACTION_MS", 0)
    with closing(connect(database_url, application="test", role="stocktide_ingest")) as working:
        assert database_users.end_overdue(working) == []
        dashboard.execute("BEGIN")
        dashboard.execute("SELECT count(*) FROM item")
        assert [(each.ended, each.state) for each in database_users.end_overdue(working)] == [
            (True, "idle in transaction")
        ]
        with pytest.raises(psycopg.OperationalError):
            dashboard.execute("SELECT 1")
        with pytest.raises(pg.InsufficientPrivilege):
            working.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'")
    assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.services
def test_a_migration_lets_readers_pass_while_somebody_holds_a_table(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up its place in the queue again and again, and says in the end what is in its way."""
    url = empty_database_url
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE thing (x integer);")
    monkeypatch.setattr(migrations, "_DIRECTORY", tmp_path)
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 200)
    monkeypatch.setattr(migrations, "ATTEMPT_DELAY_S", 0.05)
    assert migrations.apply(url) == ["0001_first"]
    (tmp_path / "0002_second.sql").write_text("ALTER TABLE thing ADD COLUMN y integer;")
    with psycopg.connect(url) as idle, psycopg.connect(url, autocommit=True) as reader:
        idle.execute("SELECT count(*) FROM thing")
        found: list[Exception] = []

        def migrate() -> None:
            try:
                migrations.apply(url)
            except StoreError as error:
                found.append(error)

        migrating = threading.Thread(target=migrate)
        migrating.start()
        while migrating.is_alive():
            reader.execute("SELECT count(*) FROM thing")
        migrating.join()
        assert "another session is reading" in str(found)
        idle.rollback()
    assert migrations.apply(url) == ["0002_second"]

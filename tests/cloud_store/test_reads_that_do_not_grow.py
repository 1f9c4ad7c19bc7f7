"""What a page costs. Broken when it reads what the tenant has instead of what it shows.

Pages of the database's memory are counted, which no other load of the machine changes.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from cloud_store.base import sql
from cloud_store.base.connection import READ_ONLY_OPTIONS, Connection, connect
from cloud_store.reports import stock_levels
from cloud_store.reports.stock_levels import MovementFilter, StockFilter
from cloud_store.tenancy import registry
from testbed.store import MergeSession
from tests.cloud_store.histories import NOW_MS, Chain, movement
from wire_protocol import clock

MOVEMENTS = 60_000
BUFFERS_MAX = 1_000  # of 8 KiB; the table has twice as many
FILL = """
INSERT INTO movement (at, hlc, seq, quantity, tenant_id, gateway_id, epoch_id, item_id, lot_id, source_id,
    destination_id, kind)
SELECT m.at - n * interval '1 second', m.hlc - n, n + 10, 1, m.tenant_id, m.gateway_id, m.epoch_id, m.item_id, m.lot_id,
    m.source_id, m.destination_id, m.kind
FROM (SELECT * FROM movement WHERE tenant_id = %s LIMIT 1) AS m, generate_series(1, %s) AS n
"""


@pytest.fixture
def reading(database_url: str) -> Iterator[Connection]:
    """Two tenants with many movements each, and a connection as the API's."""
    with (
        closing(connect(database_url, application="test")) as connection,
        closing(MergeSession(database_url)) as merger,
    ):
        for tenant in ("acme", "other"):
            registry.add_tenant(connection, tenant)
            registry.add_site(connection, tenant, "berlin")
            registry.add_gateway(connection, tenant, "berlin", f"gw-{tenant}")
            merger.merge([Chain(f"gw-{tenant}").seal([movement(clock.pack(NOW_MS), "receive", "@supplier", "A-1")])])
            connection.execute(FILL, [registry.tenant_id(connection, tenant), MOVEMENTS])
        connection.execute("ANALYZE")
        acme = registry.tenant_id(connection, "acme")
    with closing(connect(database_url, application="test", role="stocktide_api", options=READ_ONLY_OPTIONS)) as opened:
        opened.execute("SELECT set_config('stocktide.tenant_id', %s, false)", [str(acme)])
        yield opened


@contextmanager
def plans_of(connection: Connection, statement: bytes, seen: list[dict[str, Any]]) -> Iterator[None]:
    """Note the plan of each execution of a statement in the block."""
    execute = connection.cursor_factory.execute

    def explained(cursor: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        if query == statement:
            with closing(connection.cursor()) as beside:
                execute(beside, b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement, *args, prepare=False)
                [[plan]] = beside.fetchall()
            seen.append(plan[0]["Plan"])
        return execute(cursor, query, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection.cursor_factory, "execute", explained)
        yield


def buffers(plan: dict[str, Any]) -> int:
    """Pages that an execution has looked at."""
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.mark.parametrize(
    "wanted",
    [
        MovementFilter(tenant="acme"),
        MovementFilter(tenant="acme", gateway="gw-acme"),
        MovementFilter(tenant="acme", site="berlin"),
        MovementFilter(tenant="acme", sku="screw"),
        MovementFilter(tenant="acme", location="A-1"),
        MovementFilter(tenant="acme", kind="receive"),
    ],
    ids=["newest", "gateway", "site", "sku", "location", "kind"],
)
def test_a_page_of_movements_reads_little(reading: Connection, wanted: MovementFilter) -> None:
    """Whatever it is asked by, and on any page of it."""
    seen: list[dict[str, Any]] = []
    after = None
    with plans_of(reading, sql.load("stock_levels")["movements"], seen):
        for _ in range(3):
            page = stock_levels.movements(reading, wanted, limit=100, after=after)
            assert len(page.rows) == 100
            after = page.after
    assert len(seen) == 3
    assert max(map(buffers, seen)) < BUFFERS_MAX, [buffers(plan) for plan in seen]


def test_a_question_is_planned_for_its_filter_each_time(reading: Connection) -> None:
    """A plan for every filter, which PostgreSQL would make after a few calls, is a bad one for most."""
    for _ in range(12):
        stock_levels.stock(reading, StockFilter(tenant="acme", site="berlin"), limit=1_000)
    rows = reading.execute(
        "SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE '%added_up%'"
    ).fetchall()
    assert rows == [(0,)]
    assert reading.execute("SHOW max_parallel_workers_per_gather").fetchone() == ("0",)

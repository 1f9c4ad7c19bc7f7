"""What an API's questions take over a ledger of millions: pages of movements, stock, and stock of a month ago.

The movements are inserted by SQL, spread over 90 days: half of them of one tenant, four in a hundred of one hot SKU.
Each question is asked twelve times on one connection, as the API opens it; the median counts. How many movements is
said by `STOCKTIDE_BENCH_MOVEMENTS`, a million by default.
"""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from cloud_store.base import migrations
from cloud_store.base.connection import READ_ONLY_OPTIONS, Connection, connect, patient
from cloud_store.reports import history, stock_levels
from cloud_store.reports.history import AsOf
from cloud_store.reports.stock_levels import MovementFilter, StockFilter
from cloud_store.tenancy import registry
from testbed import services
from testbed.services import databases
from testbed.store import MergeSession
from tests.cloud_store.histories import Chain, movement
from wire_protocol import clock

MOVEMENTS: Final = int(os.environ.get("STOCKTIDE_BENCH_MOVEMENTS", "1000000"))
STEP: Final = 500_000
ASKED: Final = 12
DAYS: Final = 90
# Tenant: its share of all movements, sites, gateways a site.
TENANTS: Final = {"big": (0.5, 20, 5), **{f"small-{n}": (0.1, 3, 3) for n in range(5)}}
SHELVES: Final = 40
SKUS: Final = 2_000
_FILL: Final = """
WITH place AS MATERIALIZED (
    SELECT (row_number() OVER (ORDER BY location_id) - 1)::integer AS n, location_id, site_id
    FROM location JOIN site USING (site_id) WHERE tenant_id = %(tenant)s AND NOT virtual
), post AS MATERIALIZED (
    SELECT (row_number() OVER (PARTITION BY site_id ORDER BY gateway_id) - 1)::integer AS n, site_id, gateway_id,
        epoch_id
    FROM gateway JOIN epoch USING (gateway_id) WHERE tenant_id = %(tenant)s
), outside AS MATERIALIZED (
    SELECT site_id, min(location_id) FILTER (WHERE name = '@supplier') AS supplier,
        min(location_id) FILTER (WHERE name = '@customer') AS customer
    FROM location GROUP BY site_id
), item_of AS MATERIALIZED (
    SELECT array_agg(item_id ORDER BY length(sku), sku) AS ids FROM item WHERE tenant_id = %(tenant)s
), drawn AS MATERIALIZED (
    SELECT n, (random() * (%(places)s - 1))::integer AS place, (random() * (%(posts)s - 1))::integer AS post,
        CASE WHEN random() < 0.04 THEN 1 ELSE 2 + floor(%(skus)s * random() ^ 2)::integer END AS sku,
        random() < 0.52 AS comes,
        %(from_ms)s + (%(span_ms)s * n::float8 / %(all)s)::bigint AS ms
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
)
INSERT INTO movement (at, hlc, seq, quantity, tenant_id, gateway_id, epoch_id, item_id, lot_id, source_id,
    destination_id, kind)
SELECT to_timestamp(d.ms / 1000.0), d.ms << 16, 1000 + d.n, 1 + d.n %% 5, %(tenant)s, post.gateway_id, post.epoch_id,
    i.ids[least(d.sku, %(skus)s)], 0, CASE WHEN d.comes THEN o.supplier ELSE p.location_id END,
    CASE WHEN d.comes THEN p.location_id ELSE o.customer END, CASE WHEN d.comes THEN 1 ELSE 2 END
FROM drawn d
JOIN place p ON p.n = d.place
JOIN post ON post.site_id = p.site_id AND post.n = d.post
JOIN outside o ON o.site_id = p.site_id
CROSS JOIN item_of i
"""
_CELLS: Final = """
INSERT INTO balance AS b (location_id, item_id, lot_id, on_hand, moved, last_hlc, history_whole)
SELECT location_id, item_id, lot_id, sum(quantity), sum(quantity), max(hlc), true
FROM (
    SELECT source_id AS location_id, item_id, lot_id, -quantity AS quantity, hlc FROM movement WHERE seq >= 1000
    UNION ALL
    SELECT destination_id, item_id, lot_id, quantity, hlc FROM movement WHERE seq >= 1000
) AS half
GROUP BY location_id, item_id, lot_id
ORDER BY location_id, item_id, lot_id
ON CONFLICT (location_id, item_id, lot_id) DO UPDATE
SET on_hand = b.on_hand + excluded.on_hand, moved = b.moved + excluded.moved, last_hlc = excluded.last_hlc
"""
_HISTORY: Final = """
INSERT INTO cell_history (location_id, item_id, lot_id, hour, at_hour, known_hour, moved)
SELECT location_id, item_id, lot_id, hour, hour, hour, sum(quantity)
FROM (
    SELECT source_id AS location_id, item_id, lot_id, -quantity AS quantity, (hlc >> 16) / 3600000 AS hour
    FROM movement WHERE seq >= 1000 AND kind = 2
    UNION ALL
    SELECT destination_id, item_id, lot_id, quantity, (hlc >> 16) / 3600000 FROM movement WHERE seq >= 1000 AND kind = 1
) AS half
GROUP BY location_id, item_id, lot_id, hour
ORDER BY location_id, item_id, lot_id, hour
"""
_FRAMES: Final = """
INSERT INTO frame (received_at, frame, first_seq, tenant_id, gateway_id, epoch_id, entries, rejected, bytes, stream,
    replay, digest)
SELECT max(at), 1000 + min(seq), min(seq), tenant_id, gateway_id, epoch_id, max(seq) - min(seq) + 1, 0, 0, 1, false, ''
FROM movement
WHERE seq >= 1000
GROUP BY tenant_id, gateway_id, epoch_id, date_trunc('hour', at)
"""


def run() -> dict[str, Any]:
    """Measure; milliseconds of each question, of the tenant with half of all movements."""
    with databases.database(services.database_url(), "bench_growth") as url:
        migrations.apply(url)
        began = time.perf_counter()
        with closing(connect(url, application="bench")) as connection, MergeSession(url) as merger:
            for tenant, (share, sites, posts) in TENANTS.items():
                _register(connection, merger, tenant, sites, posts)
                _fill(connection, tenant, round(MOVEMENTS * share), sites, posts)
            with patient(connection):
                connection.execute(_CELLS.encode())
                connection.execute(_HISTORY.encode())
                connection.execute(_FRAMES.encode())
            connection.execute("VACUUM ANALYZE")
            big = registry.tenant_id(connection, "big")
            cells = connection.execute("SELECT count(*) FROM balance").fetchone()
        loaded_s = time.perf_counter() - began
        with closing(connect(url, application="bench", role="stocktide_api", options=READ_ONLY_OPTIONS)) as asking:
            asking.execute("SELECT set_config('stocktide.tenant_id', %s, false)", [str(big)])
            answers = {name: _median_ms(ask) for name, ask in _questions(asking).items()}
    return {"movements": MOVEMENTS, "cells": cells[0] if cells else 0, "loaded_s": loaded_s, **answers}


def _questions(asking: Connection) -> dict[str, Callable[[], object]]:
    month_ago = AsOf(datetime.now(UTC) - timedelta(days=30))
    known = AsOf(month_ago.at, month_ago.at)
    movements = {
        "newest": MovementFilter(tenant="big"),
        "by_gateway": MovementFilter(tenant="big", gateway="big-berlin-0-gw-0"),
        "by_site_and_place": MovementFilter(tenant="big", site="berlin-0", location="A-7"),
        "by_kind": MovementFilter(tenant="big", kind="pick"),
        "by_absent_kind": MovementFilter(tenant="big", kind="scrap"),
        "by_hot_sku": MovementFilter(tenant="big", sku="SKU-0"),
        "by_rare_sku": MovementFilter(tenant="big", sku=f"SKU-{SKUS - 1}"),
    }
    stock = {
        "first_page": StockFilter(tenant="big"),
        "site": StockFilter(tenant="big", site="berlin-0"),
        "hot_sku": StockFilter(tenant="big", sku="SKU-0"),
    }
    asked: dict[str, Callable[[], object]] = {}
    for name, which in movements.items():
        asked[f"movements_{name}_ms"] = partial(stock_levels.movements, asking, which, limit=100)
    for name, cells in stock.items():
        asked[f"stock_{name}_ms"] = partial(stock_levels.stock, asking, cells, limit=1_000)
        asked[f"month_ago_{name}_ms"] = partial(history.stock, asking, cells, month_ago, limit=1_000)
        asked[f"known_month_ago_{name}_ms"] = partial(history.stock, asking, cells, known, limit=1_000)
    return asked


def _median_ms(ask: Callable[[], object]) -> float | str:
    times = []
    for _ in range(ASKED):
        began = time.perf_counter()
        try:
            ask()
        except history.TooMuchHistory:
            return "refused"
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def _register(connection: Connection, merger: MergeSession, tenant: str, sites: int, posts: int) -> None:
    """The tenant's names: each gateway's first frame brings in the shelves of its site, one of them all SKUs."""
    registry.add_tenant(connection, tenant)
    at_ms = int((time.time() - (DAYS + 1) * 24 * 3600) * 1000)
    for site in range(sites):
        registry.add_site(connection, tenant, f"berlin-{site}")
        for post in range(posts):
            gateway = f"{tenant}-berlin-{site}-gw-{post}"
            registry.add_gateway(connection, tenant, f"berlin-{site}", gateway)
            count = SKUS if site == post == 0 else SHELVES
            entries = [
                movement(
                    clock.pack(at_ms, n),
                    "receive",
                    "@supplier",
                    f"A-{n % SHELVES}",
                    sku=f"SKU-{n if count == SKUS else 0}",
                )
                for n in range(count)
            ]
            gone = movement(clock.pack(at_ms, count), "pick", "A-0", "@customer", sku="SKU-0")
            chain = Chain(gateway)
            for start in range(0, count, 400):
                merger.merge([chain.seal([*entries[start : start + 400], gone])])


def _fill(connection: Connection, tenant: str, count: int, sites: int, posts: int) -> None:
    span_ms = DAYS * 24 * 3_600_000
    parameters = {
        "tenant": registry.tenant_id(connection, tenant),
        "places": sites * SHELVES,
        "posts": posts,
        "skus": SKUS,
        "span_ms": span_ms,
        "from_ms": int(time.time() * 1000) - span_ms,
        "all": count,
    }
    for first in range(0, count, STEP):
        with patient(connection):
            last = min(first + STEP, count) - 1
            connection.execute(_FILL.encode(), {**parameters, "first": first, "last": last})

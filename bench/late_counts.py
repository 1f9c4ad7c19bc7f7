"""A stocktake that was made offline: 500 counts over ten million movements of one SKU, beside 500 that come in time."""

import time
from typing import Any, Final

from cloud_store.base import migrations
from cloud_store.base.connection import Connection, connect, patient
from cloud_store.tenancy import registry
from testbed import services
from testbed.services import databases
from testbed.store import MergeSession
from tests.cloud_store.histories import NOW_MS, Chain, count, movement
from wire_protocol import clock

MOVEMENTS: Final = 10_000_000
SHELVES: Final = 500
STEP: Final = 500_000
SPAN_MS: Final = 7 * 24 * 3_600 * 1_000
# As many movements to each shelf, a receipt each, spread over a week; the ids are those of the first frame.
_FILL: Final = """
INSERT INTO movement (at, hlc, seq, quantity, tenant_id, gateway_id, epoch_id, item_id, lot_id, source_id,
    destination_id, kind)
SELECT to_timestamp(ms / 1000.0), ms::bigint << 16, 1000 + n, 1, f.tenant_id, f.gateway_id, f.epoch_id, f.item_id,
    f.lot_id, f.source_id, s.ids[1 + n %% %(shelves)s], 1
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
CROSS JOIN LATERAL (SELECT %(from_ms)s + n * %(span_ms)s / %(movements)s AS ms) AS t
CROSS JOIN (SELECT * FROM movement LIMIT 1) AS f
CROSS JOIN (SELECT array_agg(location_id ORDER BY location_id) AS ids FROM location WHERE NOT virtual) AS s
"""
_BALANCES: Final = """
UPDATE balance b SET on_hand = b.on_hand + m.moved, moved = b.moved + m.moved, last_hlc = m.last_hlc
FROM (
    SELECT destination_id, sum(quantity) AS moved, max(hlc) AS last_hlc FROM movement WHERE seq >= 1000 GROUP BY 1
) AS m
WHERE b.location_id = m.destination_id
"""
_HISTORY: Final = """
INSERT INTO cell_history AS h (location_id, item_id, lot_id, hour, at_hour, known_hour, moved)
SELECT destination_id, item_id, lot_id, hlc / (3600000::bigint << 16), hlc / (3600000::bigint << 16),
    hlc / (3600000::bigint << 16), sum(quantity)
FROM movement WHERE seq >= 1000
GROUP BY 1, 2, 3, 4
ON CONFLICT (location_id, item_id, lot_id, hour, at_hour, known_hour) DO UPDATE SET moved = h.moved + excluded.moved
"""


def run() -> dict[str, Any]:
    """Measure; seconds for a frame of 500 counts, one on each shelf."""
    with databases.database(services.database_url(), "bench_late_counts") as url:
        migrations.apply(url)
        with connect(url, application="bench") as connection, MergeSession(url) as merger:
            registry.add_tenant(connection, "acme")
            registry.add_site(connection, "acme", "berlin")
            for gateway in ("gw-a", "gw-b"):
                registry.add_gateway(connection, "acme", "berlin", gateway)
            shelves = [f"A-{n:03}" for n in range(SHELVES)]
            begin_ms = NOW_MS - 2 * SPAN_MS
            first = [movement(clock.pack(begin_ms, n), "receive", "@supplier", at) for n, at in enumerate(shelves)]
            merger.merge([Chain("gw-a").seal(first)])
            _fill(connection, begin_ms + 1_000)
            late = Chain("gw-b")

            def seconds(at_ms: int) -> float:
                frame = late.seal([count(clock.pack(at_ms, n), at, 5) for n, at in enumerate(shelves)])
                began = time.perf_counter()
                report = merger.merge([frame])
                assert (report.counts, report.rejected) == (SHELVES, 0)
                return time.perf_counter() - began

            before = seconds(begin_ms - 1_000)
            middle = seconds(begin_ms + SPAN_MS // 2)
            after_s = seconds(NOW_MS)
    return {
        "movements": MOVEMENTS,
        "counts_in_a_frame": SHELVES,
        "before_all_movements_s": before,
        "in_the_middle_s": middle,
        "in_time_s": after_s,
        "ratio_before_to_in_time": before / after_s,
        "ratio_middle_to_in_time": middle / after_s,
    }


def _fill(connection: Connection, from_ms: int) -> None:
    bounds = {"shelves": SHELVES, "from_ms": from_ms, "span_ms": SPAN_MS, "movements": MOVEMENTS}
    for first in range(0, MOVEMENTS, STEP):
        with patient(connection):
            connection.execute(_FILL.encode(), {**bounds, "first": first, "last": first + STEP - 1})
    with patient(connection):
        connection.execute(_BALANCES.encode())
        connection.execute(_HISTORY.encode())

"""Movements through one ingest worker, acknowledged, beside the raw rate of binary COPY into the same hypertable.

Both are measured in one run on one machine: the ratio says how much of what the database can take the whole path keeps:
broker, decoding, validation, deduplication, double entry, roll-up and commit.
"""

import asyncio
import time
from contextlib import closing
from itertools import chain, islice
from typing import Any, Final

from bench.cloud_worker import running_worker, until_subscribed
from cloud_store.base import gateways, migrations, sql
from cloud_store.base.connection import Connection, connect
from cloud_store.merge import copying, ledger_rows, plan
from cloud_store.merge.arrivals import ArrivedFrame
from cloud_store.merge.dictionary import Dictionary, Vocabulary
from cloud_store.reports import snapshots
from cloud_store.tenancy import registry
from testbed import services
from testbed.gateways import Fleet, LoadGateway, epoch
from testbed.services import databases
from testbed.workload import Sealer, Warehouse

GATEWAYS: Final = 100
SITES: Final = 10
FRAMES: Final = 25
ENTRIES: Final = 100
COPY_ROWS: Final = 20_000
SETTLED_S: Final = 60.0
TENANT: Final = "bench"


def run() -> dict[str, Any]:
    """Measure. Takes under a minute and a half."""
    with databases.database(services.database_url(), f"bench_{time.time_ns()}") as url:
        migrations.apply(url)
        with closing(connect(url, application="bench")) as connection:
            fleet = _fleet(connection)
            with running_worker(url, services.mqtt_url()):
                seconds = asyncio.run(_ship(fleet, connection))
            moved = GATEWAYS * FRAMES * ENTRIES
            assert sum(row.distinct for row in snapshots.entries(connection)) == moved, (
                "not every movement arrived once"
            )
            assert not snapshots.imbalance(connection), "the double entry does not hold"
            copied = _raw_copy(connection, fleet)
    return {
        "movements": moved,
        "ingest_movements_per_s": moved / seconds,
        "raw_copy_rows_per_s": copied,
        "ingest_to_copy_ratio": moved / seconds / copied,
        "bytes_per_movement": sum(len(frame) for gateway in fleet for frame in gateway.frames) / moved,
        "frames_sent_twice": sum(gateway.sends for gateway in fleet) - GATEWAYS * FRAMES,
    }


def _fleet(connection: Connection) -> list[LoadGateway]:
    """Register the gateways and seal all their frames."""
    registry.add_tenant(connection, TENANT)
    for site in range(SITES):
        registry.add_site(connection, TENANT, f"site-{site}")
    start_ms = time.time_ns() // 1_000_000 - 3_600_000
    fleet = []
    for number in range(GATEWAYS):
        name = f"bench-{time.time_ns():x}-{number}"
        registry.add_gateway(connection, TENANT, f"site-{number % SITES}", name)
        entries, sealer = Warehouse(number, start_ms).entries(), Sealer(name, epoch())
        sealed = [sealer.seal(list(islice(entries, ENTRIES))) for _ in range(FRAMES)]
        fleet.append(LoadGateway(name, epoch(), sealed))
    return fleet


async def _ship(fleet: list[LoadGateway], connection: Connection) -> float:
    """Seconds from the first frame to the last acknowledgement."""
    await until_subscribed(connection)
    began = time.perf_counter()
    async with Fleet(services.mqtt_url(), fleet) as running:
        await running.settled(SETTLED_S)
        return time.perf_counter() - began


def _raw_copy(connection: Connection, fleet: list[LoadGateway]) -> float:
    """Rows a second of COPY alone, rows built beforehand, in transactions of the size that the worker uses."""
    rows = _rows(connection, fleet)
    straight = sql.load("copying")["copy_movements"].replace(b"staged_movement", b"movement")
    began = time.perf_counter()
    for start in range(0, len(rows), COPY_ROWS):
        with connection.transaction(), connection.cursor() as cursor, cursor.copy(straight) as copy:
            copy.set_types(copying.MOVEMENT_TYPES)
            for row in rows[start : start + COPY_ROWS]:
                copy.write_row(row)
    return len(rows) / (time.perf_counter() - began)


def _rows(connection: Connection, fleet: list[LoadGateway]) -> list[tuple[Any, ...]]:
    registered = gateways.named(connection, [gateway.name for gateway in fleet])
    now_ms = time.time_ns() // 1_000_000
    arrived = [
        ArrivedFrame.read(gateway.name, "ledger", payload, now_ms) for gateway in fleet for payload in gateway.frames
    ]
    planned = plan.make(arrived, registered, {})
    words = Vocabulary()
    for frame in planned.merged:
        words.add(frame)
    ids = Dictionary()
    ids.resolve(connection, words)
    return [*chain.from_iterable(ledger_rows.build(planned.merged, ids).movements)]

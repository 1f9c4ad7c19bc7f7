"""What TLS costs: movements from gateways with certificates, each on a connection of its own, beside plain TCP.

Both in turns in one run on one machine, which encrypts at both ends: the gateways' work is on the same cores as the
broker's, so a cloud pays less. Connecting does not count; frames are sealed beforehand.
"""

import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any, Final

from bench.cloud_worker import running_worker, until_subscribed
from bench.ingest import SETTLED_S
from cloud_store.base import migrations
from cloud_store.base.connection import Connection, connect
from cloud_store.tenancy import registry
from testbed import services
from testbed.brokers import FleetBrokers
from testbed.gateways import Fleet, LoadGateway, epoch
from testbed.services import databases
from testbed.workload import Sealer, Warehouse

GATEWAYS: Final = 50
SITES: Final = 10
FRAMES: Final = 40
ENTRIES: Final = 100
ROUNDS: Final = 3


def run() -> dict[str, Any]:
    """Measure. Takes about three minutes."""
    rates: dict[str, list[float]] = {"plain": [], "tls": []}
    with tempfile.TemporaryDirectory() as folder, FleetBrokers(Path(folder)) as brokers:
        for _ in range(ROUNDS):
            rates["plain"].append(_measured(None))
            rates["tls"].append(_measured(brokers))
    plain, tls = statistics.mean(rates["plain"]), statistics.mean(rates["tls"])
    return {
        "gateways": GATEWAYS,
        "plain_movements_per_s": plain,
        "tls_movements_per_s": tls,
        "tls_to_plain_ratio": tls / plain,
        "plain_rounds": " ".join(f"{rate:.0f}" for rate in rates["plain"]),
        "tls_rounds": " ".join(f"{rate:.0f}" for rate in rates["tls"]),
    }


def _measured(brokers: FleetBrokers | None) -> float:
    """Movements a second, from the first frame to the last acknowledgement."""
    with databases.database(services.database_url(), f"bench_{time.time_ns()}") as url:
        migrations.apply(url)
        with closing(connect(url, application="bench")) as connection:
            names = _registered(connection)
            with running_worker(url, brokers.worker_url if brokers else services.mqtt_url()):
                seconds = asyncio.run(_ship(names, brokers, connection))
    return GATEWAYS * FRAMES * ENTRIES / seconds


def _registered(connection: Connection) -> list[str]:
    names = [f"tls-{time.time_ns():x}-{n}" for n in range(GATEWAYS)]
    registry.add_tenant(connection, "bench")
    for site in range(SITES):
        registry.add_site(connection, "bench", f"site-{site}")
    for number, name in enumerate(names):
        registry.add_gateway(connection, "bench", f"site-{number % SITES}", name)
    return names


async def _ship(names: list[str], brokers: FleetBrokers | None, connection: Connection) -> float:
    sealed = {name: _sealed(number, name) for number, name in enumerate(names)}
    await until_subscribed(connection)
    async with AsyncExitStack() as stack:
        fleets = []
        for name in names:
            tls, url = (brokers.context(name), brokers.gateway_url) if brokers else (None, services.mqtt_url())
            fleets.append(await stack.enter_async_context(Fleet(url, [LoadGateway(name, epoch(), [])], tls=tls)))
        async with asyncio.timeout(SETTLED_S):
            await asyncio.gather(*(fleet.announced.wait() for fleet in fleets))
        began = time.perf_counter()
        for name, fleet in zip(names, fleets, strict=True):
            for frame in sealed[name]:
                fleet.add(name, frame)
        await asyncio.gather(*(fleet.settled(SETTLED_S) for fleet in fleets))
        return time.perf_counter() - began


def _sealed(number: int, name: str) -> list[bytes]:
    start_ms = time.time_ns() // 1_000_000 - 3_600_000
    entries, sealer = Warehouse(number, start_ms).entries(), Sealer(name, epoch())
    return [sealer.seal(list(islice(entries, ENTRIES))) for _ in range(FRAMES)]

"""A quiet tenant's acknowledgements alone, and beside a noisy tenant that offers ten times its quota.

The quiet tenant's gateways seal a frame of 20 movements five times a second. Its time from sealing to acknowledgement
is taken alone, beside the noisy tenant without a quota, and beside it with one, in one run on one machine.
"""

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any, Final

from bench.cloud_worker import running_worker, until_subscribed
from bench.ingest import SETTLED_S
from cloud_store.base import migrations
from cloud_store.base.connection import Connection, connect
from cloud_store.tenancy import quotas, registry
from testbed import services
from testbed.gateways import Fleet, LoadGateway, epoch
from testbed.services import databases
from testbed.workload import Sealer, Warehouse
from wire_protocol.messages import Ack

SECONDS: Final = 12.0
WARM_S: Final = 3.0
INTERVAL_S: Final = 0.2
QUIET_GATEWAYS: Final = 10
QUIET_ENTRIES: Final = 20
NOISY_GATEWAYS: Final = 20
NOISY_ENTRIES: Final = 100
QUOTA_PER_S: Final = int(NOISY_GATEWAYS * NOISY_ENTRIES / INTERVAL_S / 10)


class Stopwatch(list[Ack]):
    """The acknowledgements of a gateway, and how long each frame waited for its own."""

    def __init__(self) -> None:
        super().__init__()
        self.sealed_s: dict[int, float] = {}
        self.waited_s: list[float] = []

    def append(self, ack: Ack) -> None:
        """An acknowledgement arrived."""
        super().append(ack)
        now = time.perf_counter()
        for frame in [frame for frame in self.sealed_s if frame <= ack.frame]:
            self.waited_s.append(now - self.sealed_s.pop(frame))


def run() -> dict[str, Any]:
    """Measure. Takes about a minute."""
    alone = _measured(noisy=False, quota=False)
    unlimited = _measured(noisy=True, quota=False)
    limited = _measured(noisy=True, quota=True)
    return {
        "quiet_alone_p50_ms": alone[0],
        "quiet_alone_p99_ms": alone[1],
        "beside_noisy_p50_ms": unlimited[0],
        "beside_noisy_p99_ms": unlimited[1],
        "noisy_entries_per_s": unlimited[2],
        "beside_limited_p50_ms": limited[0],
        "beside_limited_p99_ms": limited[1],
        "limited_entries_per_s": limited[2],
        "quota_entries_per_s": QUOTA_PER_S,
        "p99_ratio_beside_limited": limited[1] / alone[1],
    }


def _measured(*, noisy: bool, quota: bool) -> tuple[float, float, float]:
    """The quiet tenant's median and 99th percentile in milliseconds, and what the noisy one got in entries a second."""
    with databases.database(services.database_url(), f"bench_{time.time_ns()}") as url:
        migrations.apply(url)
        with closing(connect(url, application="bench")) as connection:
            quiet = registered(connection, "quiet", QUIET_GATEWAYS)
            loud = registered(connection, "noisy", NOISY_GATEWAYS)
            if quota:
                limits = {"entries_per_s_max": QUOTA_PER_S}
                quotas.change(connection, registry.tenant_id(connection, "noisy"), "noisy", limits)
            with running_worker(url, services.mqtt_url()), _shouting(loud if noisy else []):
                waited = asyncio.run(listen(quiet, connection))
                merged = _entries(connection, "noisy")
    pending = statistics.quantiles(waited, n=100)
    return pending[49] * 1000, pending[98] * 1000, merged / (SECONDS + WARM_S)


def registered(connection: Connection, tenant: str, number: int) -> list[str]:
    """The names of a tenant's new gateways."""
    names = [f"{tenant}-{time.time_ns():x}-{n}" for n in range(number)]
    registry.add_tenant(connection, tenant)
    registry.add_site(connection, tenant, "site")
    for name in names:
        registry.add_gateway(connection, tenant, "site", name)
    return names


@contextmanager
def _shouting(names: list[str]) -> Iterator[None]:
    """The noisy tenant, in a process of its own and with frames sealed beforehand, so that its work is not ours."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_shout, args=(names, services.mqtt_url(), ready))
    process.start()
    try:
        assert ready.wait(SETTLED_S), "the noisy tenant did not get ready"
        yield
    finally:
        process.terminate()
        process.join(10)


def _shout(names: list[str], mqtt_url: str, ready: Any) -> None:
    """Offer frames until killed."""
    sealed = _sealed(names, NOISY_ENTRIES, SECONDS + 2 * WARM_S)
    ready.set()
    asyncio.run(_play(sealed, mqtt_url, settle_s=3_600.0))


async def listen(names: list[str], connection: Connection) -> list[float]:
    """How long each frame of the quiet tenant waited, in seconds; the first seconds do not count."""
    sealed = _sealed(names, QUIET_ENTRIES, SECONDS + WARM_S)
    await until_subscribed(connection)
    waited = await _play(sealed, services.mqtt_url(), settle_s=SETTLED_S)
    skipped = int(WARM_S / INTERVAL_S)
    return [each for times in waited for each in times[skipped:]]


def _sealed(names: list[str], entries: int, seconds: float) -> dict[str, list[bytes]]:
    """The frames of gateways for so long."""
    start_ms = time.time_ns() // 1_000_000 - 600_000
    fleet = {}
    for number, name in enumerate(names):
        source, sealer = Warehouse(number, start_ms).entries(), Sealer(name, epoch())
        fleet[name] = [sealer.seal(list(islice(source, entries))) for _ in range(int(seconds / INTERVAL_S))]
    return fleet


async def _play(sealed: dict[str, list[bytes]], mqtt_url: str, *, settle_s: float) -> list[list[float]]:
    """Give each gateway its next frame in every interval, and wait for the acknowledgements; returns the waits."""
    watches = {name: Stopwatch() for name in sealed}
    fleet = [LoadGateway(name, epoch(), []) for name in sealed]
    for gateway in fleet:
        gateway.acks = watches[gateway.name]
    async with Fleet(mqtt_url, fleet) as running:
        await running.announced.wait()
        due = time.perf_counter()
        for turn in range(min(map(len, sealed.values()), default=0)):
            for number, (name, frames) in enumerate(sealed.items()):
                await asyncio.sleep(due + INTERVAL_S * number / len(sealed) - time.perf_counter())
                watches[name].sealed_s[turn + 1] = time.perf_counter()
                running.add(name, frames[turn])
            due += INTERVAL_S
        await running.settled(settle_s)
    return [watch.waited_s for watch in watches.values()]


def _entries(connection: Connection, tenant: str) -> int:
    row = connection.execute(
        "SELECT coalesce(sum(c.seq), 0)::bigint FROM stream_cursor c JOIN gateway g USING (gateway_id)"
        " JOIN tenant t USING (tenant_id) WHERE t.name = %s",
        [tenant],
    ).fetchone()
    return 0 if row is None else row[0]

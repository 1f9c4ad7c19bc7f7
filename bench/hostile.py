"""A quiet tenant's acknowledgements alone, and beside a gateway of another tenant that does its worst.

As `bench.tenants`: the quiet tenant's gateways seal a frame of 20 movements five times a second. Beside it in turn:
counts that come late over a busy SKU, four frames of 500 a second; frames that cannot be decoded, and frames of another
history, fifty a second; all in one run on one machine.
"""

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count as numbers
from typing import Any, Final

from bench import tenants
from bench.cloud_worker import running_worker
from bench.ingest import SETTLED_S
from cloud_store.base import migrations
from cloud_store.base.connection import connect
from mqtt_client import ConnectionOptions
from mqtt_client import connect as open_connection
from testbed import services
from testbed.services import databases
from testbed.store import MergeSession
from tests.cloud_store.histories import NOW_MS, Chain, count, movement
from wire_protocol import clock, topics
from wire_protocol.address import BrokerAddress

MOVEMENTS: Final = 200_000
SHELVES: Final = 500
JUNK_BYTES: Final = 200_000
FRAMES_PER_S: Final = 50
LATE_FRAMES_PER_S: Final = 4  # of 500 counts each: what a quota of 2,000 entries a second would let through


def run() -> dict[str, Any]:
    """Measure. Takes about two minutes."""
    measured: dict[str, Any] = {}
    alone = _beside(None)
    measured["quiet_alone_p99_ms"] = alone
    for name, kind in (("late_counts", _late_counts), ("junk", _junk), ("forks", _forks)):
        beside = _beside(kind)
        measured[f"beside_{name}_p99_ms"] = beside
        measured[f"ratio_{name}"] = beside / alone
    return measured


def _beside(kind: Callable[[str], Iterator[bytes]] | None) -> float:
    """The 99th percentile of the quiet tenant's waits, in milliseconds."""
    with databases.database(services.database_url(), f"bench_{time.time_ns()}") as url:
        migrations.apply(url)
        with closing(connect(url, application="bench")) as connection:
            quiet = tenants.registered(connection, "quiet", tenants.QUIET_GATEWAYS)
            [evil] = tenants.registered(connection, "evil", 1)
            if kind is _late_counts:
                _prepare(url, evil)
            with running_worker(url, services.mqtt_url()), _attacking(evil, kind):
                waited = asyncio.run(tenants.listen(quiet, connection))
    return statistics.quantiles(waited, n=100)[98] * 1000


def _chain(gateway: str) -> Chain:
    return Chain(gateway)


def _prepare(url: str, gateway: str) -> None:
    """Merge movements of one SKU over many shelves."""
    chain = _chain(gateway)
    with MergeSession(url) as merger:
        for first in range(0, MOVEMENTS, SHELVES):
            entries = [
                movement(clock.pack(NOW_MS + first + n), "receive", "@supplier", f"A-{n:03}") for n in range(SHELVES)
            ]
            merger.merge([chain.seal(entries)])


def _late_counts(gateway: str) -> Iterator[bytes]:
    """Frames of counts before all movements, in the log that `_prepare` began."""
    chain = _chain(gateway)
    for first in range(0, MOVEMENTS, SHELVES):
        chain.seal(
            [movement(clock.pack(NOW_MS + first + n), "receive", "@supplier", f"A-{n:03}") for n in range(SHELVES)]
        )
    for turn in numbers():
        at_ms = NOW_MS - 1_000_000 + turn
        yield chain.seal([count(clock.pack(at_ms, n), f"A-{n:03}", 0) for n in range(SHELVES)]).payload


def _junk(_: str) -> Iterator[bytes]:
    """Frames that nothing can be made of."""
    for turn in numbers():
        yield b"%d" % turn + bytes(JUNK_BYTES)


def _forks(gateway: str) -> Iterator[bytes]:
    """The first frame of one history after another."""
    for turn in numbers():
        yield Chain(gateway).seal([movement(clock.pack(NOW_MS, turn % 60_000), "receive", "@supplier", "A-1")]).payload


@contextmanager
def _attacking(gateway: str, kind: Callable[[str], Iterator[bytes]] | None) -> Iterator[None]:
    """The hostile gateway, in a process of its own."""
    if kind is None:
        yield
        return
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_attack, args=(gateway, kind, services.mqtt_url(), ready))
    process.start()
    try:
        assert ready.wait(SETTLED_S), "the hostile gateway did not get ready"
        yield
    finally:
        process.terminate()
        process.join(10)


def _attack(gateway: str, kind: Callable[[str], Iterator[bytes]], mqtt_url: str, ready: Any) -> None:
    """Publish until killed."""
    payloads = kind(gateway)
    first = next(payloads)
    ready.set()
    pause_s = 1 / (LATE_FRAMES_PER_S if kind is _late_counts else FRAMES_PER_S)
    asyncio.run(_publish(gateway, first, payloads, mqtt_url, pause_s))


async def _publish(gateway: str, first: bytes, payloads: Iterator[bytes], mqtt_url: str, pause_s: float) -> None:
    options = ConnectionOptions(address=BrokerAddress.parse(mqtt_url), client_id=f"evil-{gateway}")
    async with open_connection(options) as connection:
        await connection.publish(topics.up(gateway, "ledger"), first)
        for payload in payloads:
            await connection.publish(topics.up(gateway, "ledger"), payload)
            await asyncio.sleep(pause_s)

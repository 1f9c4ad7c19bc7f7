"""A quiet tenant's acknowledgements alone, and beside a gateway of another tenant that does its worst.

As `bench.tenants`: the quiet tenant's gateways seal a frame of 20 movements five times a second. Beside it in turn:
counts that come late over a busy SKU, four frames of 500 a second; frames that cannot be decoded, and frames of another
history, fifty a second; 46 clients that ask the HTTP API for stock of the past without a pause, and 46 that send it
bodies without an end; all in one run on one machine.
"""

import asyncio
import multiprocessing
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count as numbers
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from bench import tenants
from bench.cloud_worker import running_worker
from bench.ingest import SETTLED_S
from cloud_api.app import create
from cloud_api.settings import ApiSettings
from cloud_store.base import migrations
from cloud_store.base.connection import connect
from mqtt_client import ConnectionOptions
from mqtt_client import connect as open_connection
from testbed import services
from testbed.services import databases
from testbed.store import MergeSession
from tests.cloud_api.serving import Client, key, served
from tests.cloud_store.histories import NOW_MS, Chain, count, movement
from wire_protocol import clock, topics
from wire_protocol.address import BrokerAddress

MOVEMENTS: Final = 200_000
SHELVES: Final = 500
JUNK_BYTES: Final = 200_000
FRAMES_PER_S: Final = 50
LATE_FRAMES_PER_S: Final = 4  # of 500 counts each: what a quota of 2,000 entries a second would let through
CLIENTS: Final = 46
API_NICE: Final = 10  # as in deploy/stocktide-api.service
BODY_PART: Final = bytes(64 * 1024)

Frames: TypeAlias = Callable[[str], Iterator[bytes]]
Asking: TypeAlias = Callable[[str, dict[str, str]], None]


def run() -> dict[str, Any]:
    """Measure. Takes about three minutes."""
    measured: dict[str, Any] = {}
    alone = _beside(None)
    measured["quiet_alone_p99_ms"] = alone
    kinds: dict[str, tuple[Frames | None, Asking | None]] = {
        "late_counts": (_late_counts, None),
        "junk": (_junk, None),
        "forks": (_forks, None),
        "questions": (None, _ask_of_the_past),
        "bodies": (None, _send_endless_bodies),
    }
    for name, (frames, asking) in kinds.items():
        beside = _beside(frames, asking)
        measured[f"beside_{name}_p99_ms"] = beside
        measured[f"ratio_{name}"] = beside / alone
    return measured


def _beside(kind: Frames | None, asking: Asking | None = None) -> float:
    """The 99th percentile of the quiet tenant's waits, in milliseconds."""
    with databases.database(services.database_url(), f"bench_{time.time_ns()}") as url:
        migrations.apply(url)
        with closing(connect(url, application="bench")) as connection:
            quiet = tenants.registered(connection, "quiet", tenants.QUIET_GATEWAYS)
            [evil] = tenants.registered(connection, "evil", 1)
            if kind is _late_counts or asking is _ask_of_the_past:
                _prepare(url, evil)
            attack: tuple[Callable[..., None], tuple[Any, ...]] | None = None
            if kind is not None:
                attack = (_publish_frames, (evil, kind, services.mqtt_url()))
            elif asking is not None:
                attack = (_use_the_api, (asking, url, key(connection, "evil")))
            with running_worker(url, services.mqtt_url()), _attacking(attack):
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


def _ask_of_the_past(base: str, headers: dict[str, str]) -> None:
    """Ask for stock as it was, of one moment after the other, until killed."""
    client = Client(base)
    for turn in numbers():
        at = datetime.fromtimestamp(NOW_MS / 1_000, UTC) - timedelta(seconds=turn % 600)
        with suppress(OSError):
            client.get("/v1/stock", headers, at=at.isoformat(), virtual="true")


def _send_endless_bodies(base: str, headers: dict[str, str]) -> None:
    """Send a body that does not end, again and again, until killed."""
    address = urlsplit(base)
    assert address.hostname is not None
    assert address.port is not None
    while True:
        with suppress(OSError), socket.create_connection((address.hostname, address.port)) as opened:
            head = f"POST /v1/claims HTTP/1.1\r\nHost: bench\r\nAuthorization: {headers['Authorization']}\r\n"
            opened.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {1 << 40}\r\n\r\n".encode())
            while True:
                opened.sendall(BODY_PART)


@contextmanager
def _attacking(attack: tuple[Callable[..., None], tuple[Any, ...]] | None) -> Iterator[None]:
    """The hostile tenant, in a process of its own."""
    if attack is None:
        yield
        return
    target, arguments = attack
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=target, args=(*arguments, ready))
    process.start()
    try:
        assert ready.wait(SETTLED_S), "the hostile tenant did not get ready"
        yield
    finally:
        process.terminate()
        process.join(10)


def _use_the_api(asking: Asking, database_url: str, headers: dict[str, str], ready: Any) -> None:
    """Serve the API, on its default bounds and as its unit does, and use it by many clients until killed."""
    os.nice(API_NICE)
    settings = ApiSettings(database_url=database_url, requests_per_minute_max=1_000_000)
    with served(create(settings)) as client:
        for _ in range(CLIENTS):
            threading.Thread(target=asking, args=(client.base, headers), daemon=True).start()
        ready.set()
        threading.Event().wait()


def _publish_frames(gateway: str, kind: Frames, mqtt_url: str, ready: Any) -> None:
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

"""What one tenant can do to all the others at once: attacks that worked (ADR 20), each by a client of its own."""

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from typing import Final

from cloud_store.base.connection import connect
from cloud_store.tenancy import registry
from mqtt_client import Connection, ConnectionOptions
from mqtt_client import connect as mqtt_connect
from testbed.gateways import LoadGateway, epoch
from testbed.workload import Sealer
from tests.cloud_ingest.sites import IMPATIENT, Site
from tests.cloud_store.histories import count, movement
from wire_protocol import clock, topics
from wire_protocol.address import BrokerAddress
from wire_protocol.entries import LedgerEntry
from wire_protocol.stock import EntryKey
from wire_protocol.topics import Channel

BUSY: Final = "busy"
SHELVES: Final = 100
MOVEMENTS: Final = 20
COUNTS: Final = 6
BODY_BYTES: Final = 4 << 20
PAUSE_S: Final = 0.1  # the attackers share a process with the gateways that must go on
HIGHEST: Final = (1 << 62) - 1

Attack = Callable[[Connection, str], Awaitable[None]]


def add_stocktaker(site: Site) -> LoadGateway:
    """A gateway whose counts come before all movements of one SKU, as an honest stocktake's do that comes late."""
    name = f"{site.prefix}-stocktake"
    with closing(connect(site.database_url, application="test")) as connection:
        registry.add_gateway(connection, site.prefix, "berlin", name)
    start, shelves = int(time.time() * 1000) - 3_600_000, [f"P-{n:03}" for n in range(SHELVES)]
    runs: list[list[LedgerEntry]] = [
        [movement(clock.pack(start + 1000 * run + n), "receive", "@supplier", shelf, 2, sku=BUSY) for n, shelf in
         enumerate(shelves)]
        for run in range(1, MOVEMENTS + 1)
    ]  # fmt: skip
    runs += [
        [count(clock.pack(start - 1000 * run + n), shelf, run, sku=BUSY) for n, shelf in enumerate(shelves)]
        for run in range(COUNTS)
    ]
    sealer = Sealer(name, epoch())
    gateway = LoadGateway(name, epoch(), [sealer.seal(run) for run in runs], limits=IMPATIENT)
    entries = [entry for run in runs for entry in run]
    site.entries += [(EntryKey(entry.hlc, name, epoch(), seq), entry) for seq, entry in enumerate(entries, 1)]
    site.gateways.append(gateway)
    site.held[name] = []
    return gateway


async def junk_frames(client: Connection, gateway: str) -> None:
    """Bytes that are no frame, and a frame with an envelope that nobody knows."""
    for payload in (secrets.token_bytes(2_000), b"[1" + b",{}" * 500 + b"]\n" + secrets.token_bytes(4_000), b""):
        await client.publish(topics.up(gateway, "ledger"), payload, qos=1)


async def hostile_reports(client: Connection, gateway: str) -> None:
    """Versions and sequences at the end of the numbers, each twice, with the row there already."""
    for version in (HIGHEST - 1, HIGHEST, HIGHEST):
        report = f'{{"v":1,"version":{version},"confirmed":{{}},"errors":{{}},"firmware":{{}}}}'
        await client.publish(topics.link(gateway, Channel.REPORTED_TWIN), report.encode(), qos=1)
        ask = f'{{"v":1,"after":{{"version":{version},"key":""}}}}'
        await client.publish(topics.link(gateway, Channel.CATALOG_REQUEST), ask.encode(), qos=1)
        await client.publish(topics.link(gateway, Channel.REPLY), b'{"v":1,"id":"%d","ok":true}' % version, qos=1)


async def bad_statuses(client: Connection, gateway: str) -> None:
    """A status that says everything at its bound, and one that is none."""
    numbers = {"backlog": HIGHEST, "dead_letters": HIGHEST, "readings_dropped": HIGHEST, "devices_online": HIGHEST}
    body = ",".join(f'"{name}":{value}' for name, value in numbers.items())
    await client.publish(topics.link(gateway, Channel.STATUS), f'{{"v":1,"state":"online",{body}}}'.encode(), qos=1)
    await client.publish(topics.link(gateway, Channel.STATUS), b"{", qos=1)


@asynccontextmanager
async def all_at_once(mqtt_url: str, gateway: str) -> AsyncIterator[None]:
    """All of them, again and again, in the name of one gateway while the block runs."""
    address = BrokerAddress.parse(mqtt_url)

    async def go_on(attack: Attack) -> None:
        async with mqtt_connect(ConnectionOptions(address=address, client_id=f"evil-{attack.__name__}")) as client:
            while True:
                await attack(client, gateway)
                await asyncio.sleep(PAUSE_S)

    tasks = [asyncio.create_task(go_on(attack)) for attack in (junk_frames, hostile_reports, bad_statuses)]
    try:
        yield
    finally:
        assert not any(task.done() for task in tasks), "an attack has ended by itself"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def chunks() -> Iterator[bytes]:
    """The body of a request, far beyond what a body may have."""
    for _ in range(BODY_BYTES >> 16):
        yield b"10000\r\n" + b"x" * (1 << 16) + b"\r\n"


def huge_body(port: int) -> int:
    """Send a body without an end and without a credential; the answer's status, 0 when the server has hung up."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        head = (
            "POST /v1/keys HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode())
        with contextlib.suppress(ConnectionError):
            for chunk in chunks():
                connection.sendall(chunk)
        with contextlib.suppress(ConnectionError):
            answer = connection.recv(64).split()
            return int(answer[1]) if answer else 0
    return 0

"""Restoring a dead gateway: a new ledger under its name, with everything that the cloud has of its site.

The new ledger begins a new epoch, and knows the older ones before its first entry, so what devices send again is not
taken for new. The agent would fetch the same by itself; this does it in the foreground, with an end to wait for.

Invariant: a restore that was interrupted goes on where it stopped.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from command_line.version import version
from edge_agent import files
from edge_agent.errors import AgentRunning, EdgeError, LedgerExists
from edge_agent.identity.keystore import IdentityFolder
from edge_agent.ledger import database, recovery
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from edge_agent.ledger.writer import PatientWrites
from edge_agent.link.catalog_sync import CatalogSync
from edge_agent.link.commands import Commands
from edge_agent.link.shipping import Shipping, sender_limits
from edge_agent.link.site_sync import SiteSync
from edge_agent.link.twin_sync import TwinSync
from edge_agent.link.uplink import Uplink
from edge_agent.settings import EdgeSettings
from edge_agent.signals import Signals
from wire_protocol.address import BrokerAddress
from wire_protocol.messages import GatewayStatus
from wire_protocol.topics import Channel

RESTORING: Final = "restoring"
LOOK_S: Final = 0.2

Progress = Callable[[int, int], None]


class NothingToRestore(EdgeError):
    """The cloud did not answer."""

    hint = "Is the broker's address right, is the gateway registered and active (stocktide cloud gateway list)?"


@dataclass(frozen=True, slots=True)
class Restored:
    """What is in the new ledger: entries by log, and the devices that had reported here."""

    epoch: str
    entries: int
    logs: int
    devices: tuple[str, ...]


def restore(
    path: Path,
    gateway: str,
    cloud_url: str,
    settings: EdgeSettings,
    *,
    wait_s: float,
    progress: Progress,
    aside: bool = False,
) -> Restored:
    """Make a ledger for a gateway and fetch what the cloud has.

    `progress` gets the numbers of entries fetched and known. `aside`: a ledger that is here, damaged or not, is moved
    out of the way first, unless it is an unfinished restore.

    Raises:
        LedgerExists: there is a ledger that is not an unfinished restore.
        NothingToRestore: nothing came from the cloud for `wait_s` seconds; what was fetched is kept.
    """
    clock, address = SystemClock(), BrokerAddress.parse(cloud_url)
    if aside and not _is_unfinished(path):
        try:
            files.set_aside(path)
        except BlockingIOError:
            raise AgentRunning from None
    if database.exists(path):
        with database.reading(path) as reader:
            facts = database.meta(reader)
        if RESTORING not in facts:
            raise LedgerExists(
                f"{path} exists already; a ledger is never overwritten.",
                hint="Use it as it is; or move it out of the way, and restore what the cloud has, with --set-aside.",
            )
        if facts["gateway"] != gateway:
            hint = f"Go on with --gateway {facts['gateway']}, or remove the file."
            raise LedgerExists(f"{path} is an unfinished restore of {facts['gateway']}.", hint=hint)
    else:
        with Ledger.create(path, gateway, clock, cloud_url=cloud_url, **{RESTORING: "1"}):
            pass
    with Ledger.open(path, clock) as ledger, contextlib.closing(database.open_reader(path)) as reader:
        uplink = _uplink(path, address, ledger, reader, settings)
        asyncio.run(_fetch(uplink, wait_s, progress))
        with database.transaction(ledger.connection):
            ledger.connection.execute(statement("set_meta"), ("cloud_url", cloud_url))
        devices = [name for (name,) in ledger.connection.execute(statement("devices_heard")) if name]
        with database.transaction(ledger.connection):
            ledger.connection.executemany(statement("insert_device"), [(name, "device") for name in devices])
            ledger.connection.execute(statement("delete_meta"), (RESTORING,))
        logs = recovery.fetching(ledger.connection)
        return Restored(ledger.epoch, sum(log.seq for log in logs), len(logs), tuple(devices))


def _is_unfinished(path: Path) -> bool:
    try:
        with database.reading(path) as reader:
            return RESTORING in database.meta(reader)
    except EdgeError:
        return False


def _write(ledger: Ledger, run: Callable[[Ledger], Any]) -> "Future[Any]":
    """What the agent's writer does in a thread; here no other work waits for it."""
    done: Future[Any] = Future()
    try:
        with database.transaction(ledger.connection):
            result = run(ledger)
    except Exception as error:  # noqa: BLE001 - handed to the caller that waits for it
        done.set_exception(error)
    else:
        done.set_result(result)
    return done


def _uplink(path: Path, address: BrokerAddress, ledger: Ledger, reader: Connection, settings: EdgeSettings) -> Uplink:
    """A link that fetches the site's logs, and takes what does not need an agent."""
    clock, gateway = ledger.clock, ledger.gateway
    write = PatientWrites(lambda run: _write(ledger, run))
    shipping = Shipping(
        gateway=gateway,
        reader=reader,
        write=write,
        limits=lambda: sender_limits(settings, None),
        settings=settings,
        clock=clock,
        site=SiteSync(gateway, reader, write, settings, clock.mono_ms),
    )

    def status(state: Literal["online", "offline"]) -> GatewayStatus:
        return GatewayStatus(state=state, epoch=ledger.epoch, version=version())

    identity = IdentityFolder.beside(path)
    uplink = Uplink((address,), gateway, reader, status, shipping, settings, clock, tls=identity.tls)
    twin, catalog = TwinSync(reader, write, Signals()), CatalogSync(reader, write, settings, clock.mono_ms)
    uplink.on(Channel.COMMAND, Commands(path, clock.now_ms, write, settings).receive)
    uplink.on(Channel.DESIRED_TWIN, twin.receive)
    uplink.on(Channel.CATALOG, catalog.receive)
    uplink.polls(Channel.CATALOG_REQUEST, catalog)
    uplink.during("twin", twin.run)
    return uplink


async def _fetch(uplink: Uplink, wait_s: float, progress: Progress) -> None:
    async with _running(uplink):
        loop = asyncio.get_running_loop()
        fetched, heard_s = -1, loop.time()
        while not uplink.shipping.site.complete:
            await asyncio.sleep(LOOK_S)
            now = sum(log.seq for log in recovery.fetching(uplink.reader))
            if now != fetched:
                fetched, heard_s = now, loop.time()
                progress(fetched, max(fetched, sum(head.seq for head in uplink.shipping.site.heads)))
            elif loop.time() - heard_s > wait_s:
                raise NothingToRestore(f"Nothing came from the cloud for {wait_s:.0f} seconds.")


@asynccontextmanager
async def _running(uplink: Uplink) -> AsyncIterator[None]:
    task = asyncio.create_task(uplink.run(), name=f"restore[{uplink.gateway}]")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await uplink.say_offline()

"""The agent: composition root and lifecycle of the gateway's one long-running process.

One task group, every task named. SIGTERM stops taking messages, commits what is queued, says `offline` and ends with
exit code 0. A task that fails takes the process with it: systemd starts it again, and the ledger is whole at any
instruction.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import structlog

from edge_agent import logs
from edge_agent.devices import device_keys
from edge_agent.devices.device_keys import PasswordFile
from edge_agent.devices.firmware_server import FirmwareServer
from edge_agent.devices.mqtt import DeviceSide
from edge_agent.errors import AgentRunning, EdgeError
from edge_agent.identity.keystore import IdentityFolder
from edge_agent.identity.renewal import Renewal
from edge_agent.ledger import database, outbox, queries, stock_digest
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from edge_agent.ledger.writer import Append, LedgerWriter
from edge_agent.link.commands import Commands, Hands
from edge_agent.link.uplink import Uplink
from edge_agent.provisioning import firmware, retention, twin
from edge_agent.provisioning.images import ImageShelf
from edge_agent.provisioning.twin import Configured
from edge_agent.settings import EdgeSettings, watchdog_interval_s
from edge_agent.systemd import notify
from wire_protocol.address import BrokerAddress
from wire_protocol.firmware import FirmwareAsk
from wire_protocol.messages import ClockStatus, GatewayStatus, StreamStatus
from wire_protocol.proof import StockProof
from wire_protocol.topics import STREAMS

UPKEEP_INTERVAL_S: Final = 10.0
KEYS_RETRY_S: Final = 30.0

log = structlog.get_logger("edge_agent")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this gateway is, as its ledger says."""

    gateway: str
    epoch: str


async def run(settings: EdgeSettings) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises:
        EdgeError: the ledger or the settings do not admit it.
    """
    clock = SystemClock()
    with _sole_agent(settings.ledger), contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(settings.ledger, clock))  # brings the schema up to date
        identity = Identity(ledger.gateway, ledger.epoch)
        facts = database.meta(ledger.connection)
        reader = stack.enter_context(contextlib.closing(database.open_reader(settings.ledger)))
        lookup = stack.enter_context(contextlib.closing(database.open_reader(settings.ledger)))
        enrolled = IdentityFolder.beside(settings.ledger).current()
        given = settings.cloud_url or facts.get("cloud_url")
        told = enrolled.brokers if enrolled is not None and not settings.cloud_url else ()
        clouds = [BrokerAddress.parse(url) for url in told or ([given] if given else [])]
        local_url = settings.local_url if "local_url" in settings.model_fields_set else facts.get("local_url")
        local = BrokerAddress.parse(local_url or settings.local_url)
        agent = _Agent(settings, identity, clock, reader, KnownDevices(lookup, ImageShelf.beside(settings.ledger)))
        await agent.run(local, clouds)


class KnownDevices:
    """The devices that may speak here; a device that is added while the agent runs is found on its first message."""

    def __init__(self, connection: Connection, shelf: ImageShelf) -> None:
        self._connection, self._shelf = connection, shelf
        self._names: frozenset[str] = frozenset()

    def refresh(self) -> None:
        """Read the whole list, so that a removed device is forgotten."""
        self._names = frozenset(row[0] for row in self._connection.execute(statement("devices")))

    def configs(self) -> list[Configured]:
        """What every device of the twin is told."""
        return twin.configs(self._connection)

    def offers(self, device: str | None = None) -> list[Configured]:
        """Which firmware devices are to run."""
        return firmware.offers(self._connection, self._shelf, device)

    def __call__(self, device: str) -> bool:
        if device in self._names:
            return True
        found = self._connection.execute(statement("device_known"), (device,)).fetchone() is not None
        if found:
            self._names |= {device}
        return found


class _Agent:
    def __init__(
        self, settings: EdgeSettings, identity: Identity, clock: SystemClock, reader: Connection, known: KnownDevices
    ) -> None:
        self._settings, self._identity, self._clock, self._reader = settings, identity, clock, reader
        self._known = known
        self._uplink: Uplink | None = None
        self._loop = asyncio.get_running_loop()
        self._writer = LedgerWriter(
            lambda: Ledger.open(settings.ledger, clock), committed=self._committed, refusing=self._refusing
        )
        self._devices: DeviceSide | None = None
        self._firmware: FirmwareServer | None = None
        self._damaged: StockProof | None = None
        self._level_timer: asyncio.TimerHandle | None = None
        self._keys_due = asyncio.Event()

    async def run(self, local: BrokerAddress, clouds: Sequence[BrokerAddress]) -> None:
        cloud = clouds[0] if clouds else None
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stopping.set)
        self._devices = DeviceSide(
            local,
            self._identity.gateway,
            lambda: self._writer,
            self._known,
            configs=self._known.configs,
            offers=self._known.offers,
            asked=self._firmware_asked,
            confirmed=self._confirmed,
            mqtt_5=self._settings.mqtt_version == "5",
            keepalive_s=self._settings.keepalive_s,
            inflight_max=self._settings.local_inflight_max,
        )
        self._firmware = FirmwareServer(
            ImageShelf.beside(self._settings.ledger), self._devices.chunk, self._writer.depth,
            self._settings.firmware_chunks_per_s_max,
        )  # fmt: skip
        with self._writer, self._devices:
            if cloud is not None:
                self._uplink = self._make_uplink(cloud, tuple(clouds[1:]))
            log.info(
                "agent_started", gateway=self._identity.gateway, epoch=self._identity.epoch,
                ledger=str(self._settings.ledger), cloud=repr(cloud) if cloud else None, local=repr(local),
            )  # fmt: skip
            notify("READY=1", f"STATUS=gateway {self._identity.gateway}")
            await self._until(stopping)
            notify("STOPPING=1")
        if self._uplink is not None:
            await self._uplink.farewell()
        log.info("agent_stopped", gateway=self._identity.gateway)

    async def _until(self, stopping: asyncio.Event) -> None:
        """Run all tasks until asked to stop; a task that fails ends them all."""
        name = f"edge[{self._identity.gateway}]"
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._upkeep(), name=f"{name}.upkeep"),
                tasks.create_task(self._watch(self._writer.ended), name=f"{name}.writer"),
                tasks.create_task(self._watchdog(), name=f"{name}.watchdog"),
                tasks.create_task(self._scan(), name=f"{name}.scan"),
            ]
            if (path := self._settings.device_password_file) is not None:
                keys = self._keep_keys(PasswordFile(path, self._settings.broker_reload_command))
                running.append(tasks.create_task(keys, name=f"{name}.keys"))
            if self._firmware is not None:
                running.append(tasks.create_task(self._firmware.run(), name=f"{name}.firmware"))
            if self._uplink is not None:
                running.append(tasks.create_task(self._uplink.run(), name=f"{name}.uplink"))
            await stopping.wait()
            log.info("agent_stopping", gateway=self._identity.gateway, queued=self._writer.depth())
            # With a full disk the device side waits for the writer and the writer for room: neither may hold us up.
            self._writer.close_intake()
            for task in running:
                task.cancel()

    def _make_uplink(self, cloud: BrokerAddress, others: tuple[BrokerAddress, ...]) -> Uplink:
        identity = IdentityFolder.beside(self._settings.ledger)
        return Uplink(
            others=others,
            tls=identity.tls,
            renewal=Renewal(identity, self._identity.gateway, self._true_ms),
            address=cloud,
            gateway=self._identity.gateway,
            epoch=self._identity.epoch,
            reader=self._reader,
            submit=self._writer.submit,
            status=self._status,
            settings=self._settings,
            clock=self._clock,
            configure=self._configure,
            offer=self._offer,
            commands=Commands(
                self._settings.ledger,
                self._clock.now_ms,
                lambda run: asyncio.wrap_future(self._writer.submit(run)),
                self._settings,
                Hands(locate=self._locate, log_level=self._log_level),
            ),
        )

    def _true_ms(self) -> int | None:
        """The time as the cloud has told it; None while it has not."""
        offset_ms = self._offset_ms()
        return None if offset_ms is None else self._clock.now_ms() + offset_ms

    def _offset_ms(self) -> int | None:
        return self._uplink.shipping.offset_ms if self._uplink is not None else None

    def _committed(self, appended: list[Append]) -> None:
        """After each commit, in the writer's thread."""
        if self._devices is not None:
            self._devices.settle(appended)
        if self._uplink is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended; the entries are safe in the file
                self._loop.call_soon_threadsafe(self._uplink.wake)

    def _confirmed(self) -> None:
        """A device has answered to its configuration, in the writer's thread."""
        if self._uplink is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended; the next contact reports it
                self._loop.call_soon_threadsafe(self._uplink.twin_changed)

    def _configure(self, told: Sequence[Configured]) -> None:
        self._known.refresh()
        if self._devices is not None:
            self._devices.configure(told)
        self._keys_due.set()

    async def _keep_keys(self, file: PasswordFile) -> None:
        """Have the keys of the twin's devices in the broker's password file, from the start and whenever it changes."""
        while True:
            self._keys_due.clear()
            keys = device_keys.wanted(twin.state(self._reader))
            try:
                had = await asyncio.wrap_future(self._writer.submit(partial(device_keys.note_keyed, wanted=keys)))
                await asyncio.to_thread(file.put, keys, had)
                await asyncio.wrap_future(self._writer.submit(partial(device_keys.note_written, wanted=keys)))
            except (EdgeError, OSError) as error:
                log.warning("device_keys_not_written", file=str(file.path), reason=str(error))
                await asyncio.sleep(KEYS_RETRY_S)
            else:
                await self._keys_due.wait()

    def _offer(self) -> None:
        if self._devices is not None:
            self._devices.offer(self._known.offers())

    def _firmware_asked(self, device: str, ask: FirmwareAsk) -> None:
        """A device wants a piece of an image, in the local broker's thread."""
        if self._firmware is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended; the device asks again
                self._loop.call_soon_threadsafe(self._firmware.asked, device, ask)

    def _locate(self, device: str, seconds: int) -> None:
        if self._devices is not None:
            self._devices.locate(device, seconds)

    def _log_level(self, level: str, minutes: int) -> None:
        logs.set_level(level)
        if self._level_timer is not None:
            self._level_timer.cancel()
        self._level_timer = self._loop.call_later(60 * minutes, logs.set_level, logs.LEVEL)
        log.info("log_level_set", level=level, minutes=minutes)

    def _refusing(self, reason: str | None) -> None:
        """The disk is full, or has room again, in the writer's thread."""
        log.error("devices_refused", reason=reason) if reason else log.info("devices_accepted_again")
        notify(f"STATUS={reason or 'accepting events'}")

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_INTERVAL_S)
            try:
                done = await asyncio.wrap_future(
                    self._writer.submit(lambda ledger: retention.upkeep(ledger, self._settings))
                )
            except EdgeError as error:
                log.warning("upkeep_postponed", reason=str(error))
                continue
            self._known.refresh()
            if any(done.values()):
                log.info("upkeep_done", **done)

    async def _scan(self) -> None:
        """Compare the balances in the file with their digest, now and then; the cloud is told what is in the file."""
        while True:
            found = await asyncio.to_thread(self._scan_once)
            self._damaged = None if found.intact else found.found
            if not found.intact:
                log.error("stock_damaged", hint="stocktide edge ledger verify, then stocktide edge ledger rebuild")
            await asyncio.sleep(self._settings.stock_scan_interval_s)

    def _scan_once(self) -> stock_digest.Scan:
        with contextlib.closing(database.open_reader(self._settings.ledger)) as connection:
            return stock_digest.scan(connection)

    @staticmethod
    async def _watch(ended: "Future[None]") -> None:
        """The writer's thread ends only when asked to; if it fails, so does the agent."""
        await asyncio.shield(asyncio.wrap_future(ended))

    @staticmethod
    async def _watchdog() -> None:
        interval_s = watchdog_interval_s()
        if interval_s is None:
            return
        while True:
            notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)

    def _status(self, state: str) -> GatewayStatus:
        facts = queries.status(self._reader, self._settings.ledger)
        streams = {name: outbox.position(self._reader, name) for name in STREAMS}
        return GatewayStatus(
            state="online" if state == "online" else "offline",
            epoch=facts["epoch"],
            version=version("stocktide"),
            at_ms=self._clock.now_ms(),
            streams={
                name: StreamStatus(
                    last_seq=facts["entries"] if name == "ledger" else at.sealed_seq,
                    sealed_frame=at.sealed_frame,
                    acked_frame=at.acked_frame,
                    acked_seq=at.acked_seq,
                )
                for name, at in streams.items()
            },
            clock=ClockStatus(
                boot=self._clock.boot, offset_ms=self._uplink.shipping.offset_ms if self._uplink else None
            ),
            dead_letters=facts["dead_letters"],
            readings_dropped=facts["dropped"].get("readings_dropped", 0),
            devices_online=facts["devices_online"],
            stock=self._damaged or stock_digest.sealed(self._reader),
        )


@contextmanager
def _sole_agent(ledger: Path) -> Iterator[None]:
    """Hold the ledger's lock file; two agents on one ledger would acknowledge each other's messages."""
    if not ledger.exists():
        yield  # opening the ledger says what is wrong
        return
    with queries.lock_path(ledger).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AgentRunning from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield

"""The agent: the gateway's one long-running process, put together from its parts.

One task group, every task named. SIGTERM stops taking messages, commits what is queued, says `offline` and ends with
exit code 0. A task that fails takes the process with it: systemd starts it again, and the ledger is intact at any
instruction.
"""

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from edge_agent import files
from edge_agent.conditions import Conditions, Part
from edge_agent.devices.device_keys import KeyKeeper, PasswordFile
from edge_agent.devices.firmware_server import FirmwareServer
from edge_agent.devices.intake import SUBSCRIPTIONS, Intake
from edge_agent.devices.known import KnownDevices
from edge_agent.devices.mqtt import DeviceBroker
from edge_agent.devices.notices import Notices
from edge_agent.errors import AgentRunning
from edge_agent.identity.keystore import IdentityFolder
from edge_agent.identity.renewal import Renewal, note_certificate
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.writer import LedgerWriter, PatientWrites
from edge_agent.link.catalog_sync import CatalogSync
from edge_agent.link.certificate_sync import CertificateSync
from edge_agent.link.commands import Commands
from edge_agent.link.firmware_sync import FirmwareSync
from edge_agent.link.shipping import Shipping, sender_limits
from edge_agent.link.site_sync import SiteSync
from edge_agent.link.status import StatusReport
from edge_agent.link.twin_sync import TwinSync
from edge_agent.link.uplink import Uplink
from edge_agent.logs import TemporaryLevel
from edge_agent.provisioning.images import ImageStore
from edge_agent.provisioning.retention import keep_bounds
from edge_agent.provisioning.twin import Configured
from edge_agent.settings import EdgeSettings, watchdog_interval_s
from edge_agent.signals import Signals
from edge_agent.systemd import keep_watchdog, notify
from edge_agent.upkeep.file_check import Checked, FileCheck
from edge_agent.upkeep.stock_scan import StockScan
from wire_protocol.address import BrokerAddress
from wire_protocol.topics import Channel

log = structlog.get_logger("edge_agent")

OFFLINE = "No broker of the cloud is named: this gateway works offline."
# Under load thousands of messages wait for their commit, each a dozen objects and none in a circle; with the default
# thresholds each look for circles goes through them all.
GC_THRESHOLDS: Final = (50_000, 20, 20)
MIGRATION_STEP_S_MAX = 120  # between two signs of life of a migration


class Brokers(NamedTuple):
    """The gateway's own broker, and the cloud's in the order in which they are tried."""

    local: BrokerAddress
    cloud: tuple[BrokerAddress, ...]


@dataclass(frozen=True, slots=True)
class Foundation:
    """What every part of the agent stands on."""

    settings: EdgeSettings
    gateway: str
    clock: SystemClock
    images: ImageStore
    writer: LedgerWriter
    signals: Signals
    loop: asyncio.AbstractEventLoop
    conditions: Conditions


async def run(settings: EdgeSettings) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises:
        EdgeError: the ledger or the settings do not admit it.
    """
    gc.set_threshold(*GC_THRESHOLDS)
    clock = SystemClock()
    with _sole_agent(settings.ledger), contextlib.ExitStack() as stack:
        _make_ready(settings.ledger)
        ledger = stack.enter_context(Ledger.open(settings.ledger, clock, _note_migration))
        readers = [stack.enter_context(contextlib.closing(database.open_reader(settings.ledger))) for _ in range(3)]
        brokers = _brokers(settings, database.meta(ledger.connection))
        signals = Signals()
        foundation = Foundation(
            settings,
            ledger.gateway,
            clock,
            ImageStore.beside(settings.ledger),
            LedgerWriter(
                lambda: Ledger.open(settings.ledger, clock),
                committed=signals.ledger_committed.send,
                refusing=signals.intake_refusing.send,
            ),
            signals,
            asyncio.get_running_loop(),
            Conditions(settings.ledger),
        )
        agent, stopping = Agent(foundation, brokers, readers), _stopped_by_signals()
        log.info(
            "agent_started",
            gateway=ledger.gateway,
            epoch=ledger.epoch,
            ledger=str(settings.ledger),
            cloud=repr(brokers.cloud[0]) if brokers.cloud else None,
            local=repr(brokers.local),
        )
        await agent.run(stopping)


def _stopped_by_signals() -> asyncio.Event:
    """What SIGTERM and SIGINT set; before, they end the process at once, which is right while nothing has begun."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


def _make_ready(ledger: Path) -> None:
    """What must be done before the ledger is opened, which changes its log."""
    if ledger.exists() and (kept := database.rescue_log(ledger)) is not None:
        hint = "Bookings in it are lost here, unless the cloud has them; see: stocktide edge status"
        log.error("ledger_log_damaged", kept=str(kept), hint=hint)


def _note_migration(version: int) -> None:
    """A large ledger takes minutes: systemd must not take that for a start that hangs."""
    notify(f"STATUS=bringing the ledger to schema {version}", f"EXTEND_TIMEOUT_USEC={MIGRATION_STEP_S_MAX * 1_000_000}")


class Agent:
    """All parts, connected by signals."""

    def __init__(self, foundation: Foundation, brokers: Brokers, readers: Sequence[Connection]) -> None:
        settings, signals, writer = foundation.settings, foundation.signals, foundation.writer
        self._settings, self._gateway, self._signals, self._writer = settings, foundation.gateway, signals, writer
        self._loop, self._conditions, self._clock = foundation.loop, foundation.conditions, foundation.clock
        self._identity = IdentityFolder.beside(settings.ledger)
        for_link, for_devices, for_keys = readers
        self._scan = StockScan(settings.ledger, settings.stock_scan_interval_s)
        self._known = KnownDevices(for_devices, foundation.images)
        self._broker = DeviceBroker(
            brokers.local,
            foundation.gateway,
            SUBSCRIPTIONS,
            mqtt_5=settings.mqtt_version == "5",
            keepalive_s=settings.keepalive_s,
            inflight_max=settings.local_inflight_max,
            ca_file=None if settings.local_ca_file is None else str(settings.local_ca_file),
            conditions=self._conditions,
        )
        self._notices = Notices(self._broker)
        self._intake = Intake(
            writer,
            self._known,
            self._broker,
            self._notices,
            signals,
            clock=foundation.clock,
            late_ms_max=settings.device_late_s_max * 1_000,
        )
        writer.refuse = self._intake.refuse
        self._images = FirmwareServer(
            foundation.images, self._notices.chunk, writer.depth, settings.firmware_chunks_per_s_max
        )
        self._keys = (
            KeyKeeper(PasswordFile(path, settings.broker_reload_command), for_keys, writer.submit)
            if (path := settings.device_password_file) is not None
            else None
        )
        self._uplink = _uplink(foundation, brokers.cloud, for_link, self._scan) if brokers.cloud else None
        self._conditions.note(Part.DEVICES, "connecting", ok=True)
        for part in (Part.LINK, Part.CLOUD):
            self._conditions.note(
                part, "connecting" if brokers.cloud else "none", ok=True, why=None if brokers.cloud else OFFLINE
            )
        self._connect()

    def _connect(self) -> None:
        """Which part receives which signal."""
        signals, loop = self._signals, self._loop
        self._broker.received.connect(self._intake.receive)
        self._broker.subscribed.connect(self._announce)
        signals.ledger_committed.connect(self._intake.committed)
        signals.intake_refusing.connect(_note_refusing)
        signals.model_reported.connect(lambda device: self._notices.offer(self._known.offers(device)))
        signals.firmware_requested.connect_in(loop, self._images.requested)
        signals.twin_applied.connect(self._configure)
        signals.firmware_changed.connect(lambda: self._notices.offer(self._known.offers()))
        signals.locate_requested.connect(self._notices.locate)
        signals.log_level_requested.connect(TemporaryLevel().set)
        if self._uplink is not None:
            uplink = self._uplink
            signals.ledger_committed.connect_in(loop, lambda _appended: uplink.wake())

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until `stopping` is set."""
        with self._writer, self._broker:
            notify("READY=1", f"STATUS=gateway {self._gateway}")
            await self._until(stopping)
            notify("STOPPING=1")
        if self._uplink is not None:
            await self._uplink.say_offline()
        log.info("agent_stopped", gateway=self._gateway)

    async def _until(self, stopping: asyncio.Event) -> None:
        """Run all tasks until asked to stop; a task that fails ends them all."""
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(loop, name=f"edge[{self._gateway}].{name}") for name, loop in self._loops()]
            await stopping.wait()
            log.info("agent_stopping", gateway=self._gateway, queued=self._writer.depth())
            # With a full disk the device side waits for the writer and the writer for room: neither may hold us up.
            self._writer.close_intake()
            for task in running:
                task.cancel()

    def _loops(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        yield "upkeep", keep_bounds(self._writer.submit, self._settings, self._known.refresh)
        yield "writer", self._watch_writer()
        yield "watchdog", keep_watchdog(watchdog_interval_s())
        yield "scan", self._scan.run()
        yield "file-check", FileCheck(self._settings.ledger, self._settings.file_check_interval_s).run()
        yield "firmware", self._images.run()
        yield "conditions", self._conditions.run()
        yield "certificate", self._watch_certificate()
        if self._keys is not None:
            yield "keys", self._keys.run()
        if self._uplink is not None:
            yield "uplink", self._uplink.run()

    async def _watch_certificate(self) -> None:
        """Also without a link: nothing else would say that it has run out meanwhile."""
        while True:
            await asyncio.to_thread(note_certificate, self._conditions, self._identity, self._clock.now_ms())
            await asyncio.sleep(self._settings.certificate_look_s)

    async def _watch_writer(self) -> None:
        """The writer's thread ends only when asked to; if it fails, so does the agent."""
        await asyncio.shield(asyncio.wrap_future(self._writer.ended))

    def _announce(self) -> None:
        """Tell devices everything again: it is retained, but a broker without its memory has forgotten."""
        self._notices.configure(self._known.configs())
        self._notices.offer(self._known.offers())

    def _configure(self, configs: Sequence[Configured]) -> None:
        self._known.refresh()
        self._notices.configure(configs)
        if self._keys is not None:
            self._keys.due()


def _uplink(foundation: Foundation, brokers: tuple[BrokerAddress, ...], reader: Connection, scan: StockScan) -> Uplink:
    """The link to the cloud, with everything that goes over it."""
    settings, signals, clock, gateway = foundation.settings, foundation.signals, foundation.clock, foundation.gateway
    conditions = foundation.conditions
    write = PatientWrites(foundation.writer.submit)
    firmware = FirmwareSync(reader, foundation.images, clock.mono_ms, signals)
    twin = TwinSync(reader, write, signals, firmware.report)
    firmware.reported = twin.changed
    shipping = Shipping(
        gateway=gateway,
        reader=reader,
        write=write,
        settings=settings,
        clock=clock,
        limits=lambda: sender_limits(settings, twin.limits().window_frames),
        site=SiteSync(gateway, reader, write, settings, clock.mono_ms),
    )

    def true_ms() -> int | None:
        """The time as the cloud's acknowledgements give it."""
        return None if shipping.offset_ms is None else clock.now_ms() + shipping.offset_ms

    identity = IdentityFolder.beside(settings.ledger)

    def problems() -> dict[str, str]:
        """What the cloud's operator cannot see: the link is up when this is sent."""
        checked = Checked.last(settings.ledger)
        damage = {} if checked is None or checked.problem is None else {"file": checked.problem}
        return conditions.problems() | damage

    status = StatusReport(reader, settings.ledger, clock, lambda: shipping.offset_ms, lambda: scan.damaged, problems)
    uplink = Uplink(
        brokers, gateway, reader, status, shipping, settings, clock, tls=identity.tls, conditions=conditions
    )
    catalog = CatalogSync(reader, write, settings, clock.mono_ms)
    certificate = CertificateSync(Renewal(identity, gateway, true_ms), settings.certificate_look_s)
    commands = Commands(settings.ledger, clock.now_ms, write, settings, signals)
    uplink.on(Channel.DESIRED_TWIN, twin.receive)
    uplink.on(Channel.CATALOG, catalog.receive)
    uplink.on(Channel.FIRMWARE, firmware.receive)
    uplink.on(Channel.CERTIFICATE, certificate.receive)
    uplink.on(Channel.COMMAND, commands.receive)
    uplink.polls(Channel.CATALOG_REQUEST, catalog)
    uplink.polls(Channel.FIRMWARE_REQUEST, firmware)
    uplink.during("twin", twin.run)
    uplink.during("certificate", certificate.run)
    signals.device_reported.connect_in(foundation.loop, twin.changed)
    signals.twin_applied.connect(lambda _configs: firmware.twin_changed())
    signals.twin_applied.connect(lambda _configs: shipping.limits_changed())
    signals.sync_requested.connect(uplink.sync)
    signals.sync_requested.connect(twin.changed)
    signals.epoch_requested.connect(shipping.epoch_wanted)
    signals.epoch_requested.connect(uplink.wake)
    return uplink


def _brokers(settings: EdgeSettings, facts: dict[str, str]) -> Brokers:
    """Where the agent connects to: what the settings say, or else the certificate's answer, or else the ledger."""
    enrolled = IdentityFolder.beside(settings.ledger).current()
    given = settings.cloud_url or facts.get("cloud_url")
    enrolled_with = enrolled.brokers if enrolled is not None and not settings.cloud_url else ()
    local_url = settings.local_url if "local_url" in settings.model_fields_set else facts.get("local_url")
    return Brokers(
        BrokerAddress.parse(local_url or settings.local_url),
        tuple(BrokerAddress.parse(url) for url in enrolled_with or ([given] if given else [])),
    )


def _note_refusing(reason: str | None) -> None:
    """The disk is full, or has room again."""
    log.error("devices_refused", reason=reason) if reason else log.info("devices_accepted_again")
    notify(f"STATUS={reason or 'accepting events'}")


@contextmanager
def _sole_agent(ledger: Path) -> Iterator[None]:
    """Hold the ledger's lock file; two agents on one ledger would acknowledge each other's messages."""
    if not ledger.exists():
        yield  # opening the ledger says what is wrong
        return
    with contextlib.ExitStack() as held:
        try:
            file = held.enter_context(files.locked(files.lock_path(ledger)))
        except BlockingIOError:
            raise AgentRunning from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield

"""The uplink: a connection to the cloud's broker, and what goes over it.

What a ledger does on a contact is `shipping`'s; this module connects, waits, reads and publishes. MQTT's own QoS 1 is
used hop by hop and never trusted end to end.

Invariant: the device side and the command line never wait for anything here.
"""

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import aiomqtt
import structlog

from edge_agent.errors import EdgeError, LedgerBusy, LedgerFull
from edge_agent.ledger import database
from edge_agent.ledger.clock import Clock
from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.link.catalog_sync import CatalogLink
from edge_agent.link.cloud_client import CloudClient
from edge_agent.link.commands import Commands
from edge_agent.link.firmware_sync import FirmwareLink
from edge_agent.link.shipping import EpochOpened, Shipping
from edge_agent.link.site_sync import SiteLink
from edge_agent.link.twin_sync import TwinLink
from edge_agent.provisioning.images import ImageShelf
from edge_agent.provisioning.twin import Configured, narrow
from edge_agent.settings import EdgeSettings
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.catalog import CatalogPage
from wire_protocol.errors import WireError
from wire_protocol.firmware import FirmwareChunk
from wire_protocol.messages import Ack, CertificateRequest, CertificateResponse, Command, GatewayStatus
from wire_protocol.replication import SenderLimits
from wire_protocol.site_messages import unpack
from wire_protocol.topics import Channel, LinkTopic, Stream
from wire_protocol.twin import ReportedTwin

T = TypeVar("T")

TICK_S: Final = 0.2  # how often entries that another process committed are noticed
INCOMING_MESSAGES_MAX: Final = 1_000
RECONNECT_DELAY_S: Final = 0.5
SLOW_ATTEMPT: Final = 16  # what fails by itself fails again at once: wait as long as after so many attempts
CONNECT_TIMEOUT_S: Final = 10.0
# An acknowledgement and a report go out one after the other: Nagle's algorithm (RFC 896) would hold the second back
# until the broker's delayed acknowledgement of the first, 40 ms later.
NO_DELAY: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)

log = structlog.get_logger("edge_agent.link.uplink")


class CertificateRenewal(Protocol):
    """Keeps this gateway's certificate from running out; both methods touch files."""

    def question(self) -> CertificateRequest | None:
        """What to ask the cloud now, if it is time."""

    def take(self, answer: CertificateResponse) -> bool:
        """Put the answer in place. Returns whether there is a new identity."""


@dataclass(slots=True)
class Uplink:
    """Keeps a connection to the cloud's broker and ships what the ledger has.

    Args:
        address: the cloud's broker.
        reader: a read-only connection to the ledger, used by this object alone.
        submit: hands a write to the ledger's writer.
        status: makes the gateway's status message.
        commands: carries out what the cloud asks for.
        configure: tells devices what the twin wants of them.
        offer: tells devices which firmware they are to run.
        others: the cloud's other brokers, each tried when the one before does not answer.
        tls: what an attempt to connect proves itself with; given how many have failed before it.
        renewal: keeps the certificate from running out, if there is one.
        settings, clock, gateway, epoch: as everywhere.
    """

    address: BrokerAddress
    gateway: str
    epoch: str
    reader: Connection
    submit: Callable[[Callable[[Ledger], Any]], "Future[Any]"]
    status: Callable[[str], GatewayStatus]
    settings: EdgeSettings
    clock: Clock
    commands: Commands
    configure: Callable[[Sequence[Configured]], Any] = lambda _: None
    offer: Callable[[], Any] = lambda: None
    others: tuple[BrokerAddress, ...] = ()
    tls: Callable[[int], ssl.SSLContext] = lambda _attempt: ssl.create_default_context()
    renewal: CertificateRenewal | None = None
    online: bool = False
    shipping: Shipping = field(init=False)
    twin: TwinLink = field(init=False)
    catalog: CatalogLink = field(init=False)
    firmware: FirmwareLink = field(init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _twin_changed: asyncio.Event = field(default_factory=asyncio.Event)
    _report_soon: asyncio.Event = field(default_factory=asyncio.Event)
    _contact: CloudClient | None = None

    def __post_init__(self) -> None:
        shelf = ImageShelf.beside(self.settings.ledger)
        self.firmware = FirmwareLink(self.reader, shelf, self.clock.mono_ms, self.offer)
        self.twin = TwinLink(self.reader, self._write, self.configure, self.firmware.report, self.firmware.twin_changed)
        self.catalog = CatalogLink(self.reader, self._write, self.settings, self.clock.mono_ms)
        self.shipping = Shipping(
            gateway=self.gateway,
            epoch=self.epoch,
            reader=self.reader,
            write=self._write,
            limits=self._limits,
            settings=self.settings,
            clock=self.clock,
            site=SiteLink(self.gateway, self.reader, self._write, self.settings, self.clock.mono_ms),
        )
        self.commands.hands.sync, self.commands.hands.epoch_wanted = self._sync_now, self._epoch_wanted

    def wake(self) -> None:
        """Something was committed. Call it in the event loop's thread."""
        self._wake.set()

    def twin_changed(self) -> None:
        """A device has answered to its configuration. Call it in the event loop's thread."""
        self._twin_changed.set()

    async def run(self) -> None:
        """Connect, ship, reconnect, until cancelled."""
        attempt = 0
        while True:
            # It may have changed in a contact that broke while the new one was being opened.
            self.epoch = database.meta(self.reader)["epoch"]
            try:
                async with self._client(attempt) as client:
                    attempt, self._contact = 0, client
                    await self._ship(client)
            except* EpochOpened:
                log.info("epoch_goes_on", gateway=self.gateway)
            except* EdgeError as errors:
                # Nothing that concerns the cloud may keep devices and technicians from working.
                log.exception("uplink_failed", reason=str(errors.exceptions[0]))
                attempt = SLOW_ATTEMPT
            except* (aiomqtt.MqttError, OSError, TimeoutError) as errors:
                reason = str(errors.exceptions[0])
                if attempt == 0:
                    log.warning("uplink_down", broker=repr(self.address), reason=reason)
                if self._contact is not None and self._contact.taken_over:
                    log.warning("uplink_taken_over", broker=repr(self.address))
                    # By a clone of this disk, or to shut us out: whoever comes back at once only takes it back again.
                    attempt = SLOW_ATTEMPT
                self._contact = None
                self.address, *rest = (*self.others, self.address)
                self.others = tuple(rest)
            finally:
                self.online = False
            # The link broke while we were being cancelled: a task group that has both raises the error alone.
            _heed_cancellation()
            # Full jitter, so that a thousand gateways do not come back in step
            # (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
            ceiling = min(self.settings.reconnect_delay_s_max, RECONNECT_DELAY_S * 2 ** min(attempt, 16))
            attempt += 1
            await asyncio.sleep(random.uniform(0.1, 1.0) * ceiling)  # noqa: S311 - spreading load, not secrecy

    def _limits(self) -> SenderLimits:
        return SenderLimits(
            window_frames_max=narrow(self.settings.window_frames_max, self.twin.limits().window_frames),
            live_entries_max=self.settings.frame_entries_max,
            seal_delay_ms=self.settings.seal_delay_ms,
            resend_delay_ms=self.settings.resend_delay_ms,
            resend_delay_ms_max=self.settings.resend_delay_ms_max,
        )

    def _client(self, attempt: int = 0) -> CloudClient:
        will = aiomqtt.Will(self._topic(Channel.STATUS), self.status("offline").encode(), qos=1, retain=True)
        mqtt_5 = self.settings.mqtt_version == "5"
        return CloudClient(
            self.address.host,
            self.address.port,
            username=self.address.user,
            password=self.address.password,
            # The epoch, so that a clone of this disk is not kicked off the broker by us, nor we by it: both have goods
            # to report, and the cloud must hear of both to raise an alarm.
            identifier=f"stocktide-{self.gateway}-{self.epoch[-8:]}",
            protocol=aiomqtt.ProtocolVersion.V5 if mqtt_5 else aiomqtt.ProtocolVersion.V311,
            clean_session=None if mqtt_5 else True,
            will=will,
            keepalive=self.settings.keepalive_s,
            timeout=CONNECT_TIMEOUT_S,
            socket_options=NO_DELAY,
            max_queued_incoming_messages=INCOMING_MESSAGES_MAX,
            tls_context=self.tls(attempt) if self.address.tls else None,
        )

    async def _ship(self, client: CloudClient) -> None:
        """One contact: announce, then receive, pump and report until the link breaks."""
        # aiomqtt warns above this many calls on their way; two windows of frames and some reports are no surprise.
        client.pending_calls_threshold = 2 * self.settings.window_frames_max + 8
        await client.subscribe(topics.down_filter(self.gateway), qos=1)
        _heed_cancellation()
        for asking in (self.catalog.asking, self.firmware.asking):
            asking.connected(self.clock.mono_ms())
        await self._report(client, "online", arrived=True)
        self.online = True
        log.info("uplink_up", broker=repr(self.address))
        async with asyncio.TaskGroup() as tasks:
            self.shipping.connected(self.epoch, partial(self._put, client, tasks))
            tasks.create_task(self._pump(client), name=f"edge[{self.gateway}].uplink.pump")
            tasks.create_task(self._report_regularly(client), name=f"edge[{self.gateway}].uplink.status")
            tasks.create_task(self._report_twin(client), name=f"edge[{self.gateway}].uplink.twin")
            if self.renewal is not None:
                tasks.create_task(self._renew(client, self.renewal), name=f"edge[{self.gateway}].uplink.renewal")
            # In the body, not a task: a group whose body has ended does not take its own cancellation of us back
            # (Python 3.11), and `run` could not tell it from a real one.
            await self._receive(client, tasks)

    async def farewell(self) -> None:
        """Say `offline` on the way out, in a contact of its own; silently given up when there is no link."""
        try:
            async with asyncio.timeout(2), self._client() as client:
                await self._report(client, "offline")
        except (aiomqtt.MqttError, OSError, TimeoutError):
            log.info("farewell_not_sent", broker=repr(self.address))

    async def _report(self, client: CloudClient, state: str, *, arrived: bool = False) -> None:
        status = self.status(state).model_copy(update={"arrived": arrived})
        await client.publish(self._topic(Channel.STATUS), status.encode(), qos=1, retain=True)
        _heed_cancellation()

    async def _report_regularly(self, client: CloudClient) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.status_interval_s):
                    await self._report_soon.wait()
            self._report_soon.clear()
            await self._report(client, "online")

    async def _report_twin(self, client: CloudClient) -> None:
        """Report the twin in force on contact, and whenever devices have answered."""
        while True:
            self._twin_changed.clear()
            await self._say_twin(client, self.twin.report())
            await self._twin_changed.wait()
            await asyncio.sleep(TICK_S)  # the devices of a site answer together

    async def _say_twin(self, client: CloudClient, report: ReportedTwin) -> None:
        await client.publish(self._topic(Channel.REPORTED_TWIN), report.encode(), qos=1)
        _heed_cancellation()

    async def _receive(self, client: CloudClient, tasks: asyncio.TaskGroup) -> None:
        async for message in client.messages:
            try:
                topic = topics.parse(str(message.topic))
                if isinstance(topic, LinkTopic):
                    await self._take(client, tasks, topic.channel, bytes(message.payload))
            except WireError as error:
                log.warning("message_refused", topic=str(message.topic), reason=str(error))

    async def _take(self, client: CloudClient, tasks: asyncio.TaskGroup, channel: Channel, payload: bytes) -> None:
        if channel is Channel.ACK:
            await self.shipping.acknowledged(Ack.decode(payload))
        elif channel is Channel.COMMAND:
            command = Command.decode(payload)
            if self.commands.take():
                name = f"edge[{self.gateway}].command.{command.name}"
                tasks.create_task(self._obey(client, command), name=name)
            else:
                log.warning("command_dropped", command=command.name, id=command.id)
        elif channel is Channel.SITE_LEDGER:
            for piece in unpack(payload):
                await self.shipping.passed_down(piece)
            self._wake.set()
        else:
            await self._provision(client, channel, payload)

    async def _provision(self, client: CloudClient, channel: Channel, payload: bytes) -> None:
        """Take what the cloud provides this gateway with."""
        if channel is Channel.DESIRED_TWIN:
            await self._say_twin(client, await self.twin.take(payload))
            self.shipping.limits_changed()
        elif channel is Channel.CERTIFICATE:
            if self.renewal is not None:
                await asyncio.to_thread(self.renewal.take, CertificateResponse.decode(payload))
        elif channel is Channel.CATALOG:
            await self.catalog.take(CatalogPage.decode(payload))
            self._wake.set()
        elif channel is Channel.FIRMWARE:
            if await self.firmware.take(FirmwareChunk.decode(payload)):
                self._twin_changed.set()
            self._wake.set()

    async def _renew(self, client: CloudClient, renewal: CertificateRenewal) -> None:
        while True:
            question = await asyncio.to_thread(renewal.question)
            if question is not None:
                await client.publish(self._topic(Channel.CERTIFICATE_ASK), question.encode(), qos=1)
            await asyncio.sleep(self.settings.certificate_look_s)

    async def _obey(self, client: CloudClient, command: Command) -> None:
        reply = await self.commands.carry_out(command)
        if reply is None:
            return
        await client.publish(self._topic(Channel.REPLY), reply.encode(), qos=1)
        _heed_cancellation()

    async def _sync_now(self) -> None:
        """The cloud wants everything that is known, and we what the site's others have."""
        self.shipping.site.asking.ask_now(self.clock.mono_ms())
        self.catalog.asking.ask_now(self.clock.mono_ms())
        self._report_soon.set()
        self._twin_changed.set()
        self._wake.set()

    async def _epoch_wanted(self) -> None:
        """The ledger has noted that it is to go on in a new epoch."""
        self.shipping.epoch_wanted()
        self._wake.set()

    async def _ask(self, client: CloudClient) -> None:
        """Ask for the site's other logs, for the catalogue and for firmware images when that is due."""
        question = self.shipping.site.question()
        if question is not None:
            await client.publish(self._topic(Channel.SITE_ASK), question.encode(), qos=1)
            _heed_cancellation()
        if (wanted := self.catalog.question()) is not None:
            await client.publish(self._topic(Channel.CATALOG_ASK), wanted.encode(), qos=1)
            _heed_cancellation()
        if (missing := self.firmware.question()) is not None:
            await client.publish(self._topic(Channel.FIRMWARE_ASK), missing.encode(), qos=1)
            _heed_cancellation()

    async def _pump(self, client: CloudClient) -> None:
        """Ship what there is, again and again."""
        await self.shipping.begin()
        while True:
            self._wake.clear()
            await self.shipping.look()
            await self._ask(client)
            await self._sleep()

    async def _sleep(self) -> None:
        """Until something is committed, a sender's deadline, or the next look at the file."""
        askings = (self.catalog.asking, self.firmware.asking)
        deadlines = (self.shipping.next_deadline_ms(), *(asking.next_deadline_ms() for asking in askings))
        next_ms = min((at for at in deadlines if at is not None), default=None)
        delay_s = TICK_S if next_ms is None else max(0.0, (next_ms - self.clock.mono_ms()) / 1_000)
        try:
            async with asyncio.timeout(min(delay_s, TICK_S)):
                await self._wake.wait()
        except TimeoutError:
            return

    def _put(self, client: CloudClient, tasks: asyncio.TaskGroup, stream: Stream, frame: int, body: bytes) -> None:
        """Part of `Shipping`."""
        publish = client.publish(topics.up(self.gateway, stream), body, qos=1)
        # A task each, because the window wants several on their way at once; asyncio starts them in order.
        tasks.create_task(publish, name=f"edge[{self.gateway}].uplink.frame[{stream}:{frame}]")

    async def _write(self, run: Callable[[Ledger], T]) -> T:
        """A write by the ledger's writer, waited for; tried again while the disk is full."""
        while True:
            written = asyncio.wrap_future(self.submit(run))
            try:
                return await asyncio.shield(written)
            except asyncio.CancelledError:
                # The writer will commit it whatever we do; the next contact must find it done.
                await asyncio.wait([written])
                raise
            except (LedgerFull, LedgerBusy) as error:
                log.warning("uplink_waits_for_ledger", reason=str(error))
                await asyncio.sleep(1)

    def _topic(self, channel: Channel) -> str:
        return topics.link(self.gateway, channel)


def _heed_cancellation() -> None:
    """Raise a cancellation of the current task that was swallowed.

    aiomqtt waits with `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that comes together with the
    answer (https://bugs.python.org/issue37658); the task would go on as if nobody wanted it to end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError

"""The uplink: sealed frames to the cloud's broker, acknowledgements back. The only importer of aiomqtt.

The decisions are the senders' (`wire_protocol.replication`); this module waits, reads, publishes. MQTT's own QoS 1 is
used hop by hop and never trusted end to end: only an acknowledgement that the cloud sent after its commit moves the
cursor.

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
from typing import Any, Final, TypeVar

import aiomqtt
import structlog
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent import database, outbox
from edge_agent.catalog_link import CatalogLink
from edge_agent.clock import Clock
from edge_agent.commands import Commands
from edge_agent.database import Connection
from edge_agent.errors import EdgeError, LedgerBusy, LedgerFull
from edge_agent.ledger import Ledger
from edge_agent.outbox import Outbox
from edge_agent.renewal import Renewal
from edge_agent.settings import EdgeSettings
from edge_agent.site_link import CloudLost, SiteLink
from edge_agent.twin import Configured, narrow
from edge_agent.twin_link import TwinLink
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.catalog import CatalogPage
from wire_protocol.errors import WireError
from wire_protocol.messages import (
    Ack,
    Bounded,
    CertificateResponse,
    Command,
    GatewayStatus,
    Rejected,
)
from wire_protocol.replication import Acked, Effect, Forked, Seal, Send, Sender, SenderLimits, SteppedBack
from wire_protocol.site import SiteReader
from wire_protocol.site_messages import SiteFrame, SiteHeads, unpack
from wire_protocol.topics import STREAMS, Channel, LinkTopic, Stream
from wire_protocol.twin import ReportedTwin

T = TypeVar("T")

TICK_S: Final = 0.2  # how often entries that another process committed are noticed
INCOMING_MESSAGES_MAX: Final = 1_000
RECONNECT_DELAY_S: Final = 0.5
SLOW_ATTEMPT: Final = 16  # what fails by itself fails again at once: wait as long as after so many attempts
OFFSET_MS_MIN: Final = 1_000  # what is below is within what a round trip can tell; the clock counts as right
TAKEN_OVER: Final = 0x8E  # why the broker ends us when somebody connects under our client id (MQTT 5, 3.14.2.1)
CONNECT_TIMEOUT_S: Final = 10.0
# An acknowledgement and a report go out one after the other: Nagle's algorithm (RFC 896) would hold the second back
# until the broker's delayed acknowledgement of the first, 40 ms later.
NO_DELAY: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
TIME_WAIT_MS: Final = 5_000  # how long nothing is sealed for want of the true time, from the beginning of a contact

log = structlog.get_logger("edge_agent.uplink")


class _Client(aiomqtt.Client):
    """Notices what aiomqtt passes over.

    A PUBACK with a reason code of 0x80 or above is a failed publish; and a connection that the broker closes before it
    has answered to CONNECT, as one that starts or a proxy before it does, is not waited for until the timeout.
    """

    taken_over = False

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason_code: ReasonCode, properties: Properties | None = None
    ) -> None:
        self.taken_over = reason_code.value == TAKEN_OVER
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError("the broker closed the connection without an answer"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        if reason_code.is_failure:
            # Nothing else to do: the frame stays unacknowledged, so its sender sends it again.
            log.warning("publish_refused", reason=str(reason_code))
        super()._on_publish(client, userdata, mid, reason_code, properties)


class _EpochOpened(Exception):
    """The ledger carries on in a new epoch; this contact was about the old one."""


@dataclass(slots=True)
class Lane:
    """One stream on its way up: its sender, and what the sender cannot know."""

    sender: Sender
    source_id: int
    waiting_since_ms: int | None = None


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
    others: tuple[BrokerAddress, ...] = ()
    tls: Callable[[int], ssl.SSLContext] = lambda _attempt: ssl.create_default_context()
    renewal: Renewal | None = None
    online: bool = False
    offset_ms: int | None = None
    site: SiteLink = field(init=False)
    twin: TwinLink = field(init=False)
    catalog: CatalogLink = field(init=False)
    _zero_ms: int | None = None
    _lanes: dict[Stream, Lane] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _twin_changed: asyncio.Event = field(default_factory=asyncio.Event)
    _report_soon: asyncio.Event = field(default_factory=asyncio.Event)
    _contact_ms: int | None = None
    _contact: _Client | None = None

    def __post_init__(self) -> None:
        self.site = SiteLink(self.gateway, self.reader, self._write, self.settings, self._sender_ms)
        self.twin = TwinLink(self.reader, self._write, self.configure)
        self.catalog = CatalogLink(self.reader, self._write, self.settings, self._sender_ms)
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
            except* _EpochOpened:
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

    def _lane(self, stream: Stream) -> Lane:
        at = outbox.position(self.reader, stream)
        sender = Sender(
            stream,
            self.epoch,
            sealed=at.sealed_frame,
            acked=at.acked_frame,
            limits=self._limits(),
            jitter=lambda: random.uniform(0.75, 1.25),  # noqa: S311 - as above
            digest_of=lambda frame: outbox.digest(self.reader, stream, frame),
        )
        sender.forked = at.fork
        return Lane(sender, at.source_id)

    def _limits(self) -> SenderLimits:
        return SenderLimits(
            window_frames_max=narrow(self.settings.window_frames_max, self.twin.limits().window_frames),
            live_entries_max=self.settings.frame_entries_max,
            seal_delay_ms=self.settings.seal_delay_ms,
            resend_delay_ms=self.settings.resend_delay_ms,
            resend_delay_ms_max=self.settings.resend_delay_ms_max,
        )

    def _client(self, attempt: int = 0) -> _Client:
        will = aiomqtt.Will(self._topic(Channel.STATUS), self.status("offline").encode(), qos=1, retain=True)
        mqtt_5 = self.settings.mqtt_version == "5"
        return _Client(
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

    async def _ship(self, client: _Client) -> None:
        """One contact: announce, then receive, pump and report until the link breaks."""
        # aiomqtt warns above this many calls on their way; two windows of frames and some reports are no surprise.
        client.pending_calls_threshold = 2 * self.settings.window_frames_max + 8
        await client.subscribe(topics.down_filter(self.gateway), qos=1)
        _heed_cancellation()
        self._contact_ms, self._zero_ms = self.clock.mono_ms(), None
        self._lanes = {stream: self._lane(stream) for stream in STREAMS}
        self.site.connected(self.epoch)
        self.catalog.asking.connected(self._sender_ms())
        await self._report(client, "online")
        self.online = True
        log.info("uplink_up", broker=repr(self.address))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pump(client, tasks), name=f"edge[{self.gateway}].uplink.pump")
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

    async def _report(self, client: _Client, state: str) -> None:
        await client.publish(self._topic(Channel.STATUS), self.status(state).encode(), qos=1, retain=True)
        _heed_cancellation()

    async def _report_regularly(self, client: _Client) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.status_interval_s):
                    await self._report_soon.wait()
            self._report_soon.clear()
            await self._report(client, "online")

    async def _report_twin(self, client: _Client) -> None:
        """Report the twin in force on contact, and whenever devices have answered."""
        while True:
            self._twin_changed.clear()
            await self._say_twin(client, self.twin.report())
            await self._twin_changed.wait()
            await asyncio.sleep(TICK_S)  # the devices of a site answer together

    async def _say_twin(self, client: _Client, report: ReportedTwin) -> None:
        await client.publish(self._topic(Channel.REPORTED_TWIN), report.encode(), qos=1)
        _heed_cancellation()

    async def _receive(self, client: _Client, tasks: asyncio.TaskGroup) -> None:
        async for message in client.messages:
            try:
                topic = topics.parse(str(message.topic))
                if isinstance(topic, LinkTopic):
                    await self._take(client, tasks, topic.channel, bytes(message.payload))
            except WireError as error:
                log.warning("message_refused", topic=str(message.topic), reason=str(error))

    async def _take(self, client: _Client, tasks: asyncio.TaskGroup, channel: Channel, payload: bytes) -> None:
        if channel is Channel.ACK:
            await self._acknowledged(client, tasks, Ack.decode(payload))
        elif channel is Channel.COMMAND:
            command = Command.decode(payload)
            if self.commands.take():
                name = f"edge[{self.gateway}].command.{command.name}"
                tasks.create_task(self._obey(client, command), name=name)
            else:
                log.warning("command_dropped", command=command.name, id=command.id)
        elif channel is Channel.SITE_LEDGER:
            for piece in unpack(payload):
                await self._passed_down(piece)
        else:
            await self._provision(client, channel, payload)

    async def _provision(self, client: _Client, channel: Channel, payload: bytes) -> None:
        """Take what the cloud provides this gateway with."""
        if channel is Channel.DESIRED_TWIN:
            await self._say_twin(client, await self.twin.take(payload))
            for lane in self._lanes.values():
                lane.sender.limits = self._limits()
        elif channel is Channel.CERTIFICATE:
            if self.renewal is not None:
                await asyncio.to_thread(self.renewal.take, CertificateResponse.decode(payload))
        elif channel is Channel.CATALOG:
            await self.catalog.take(CatalogPage.decode(payload))
            self._wake.set()

    async def _renew(self, client: _Client, renewal: Renewal) -> None:
        while True:
            question = await asyncio.to_thread(renewal.question)
            if question is not None:
                await client.publish(self._topic(Channel.CERTIFICATE_ASK), question.encode(), qos=1)
            await asyncio.sleep(self.settings.certificate_look_s)

    async def _obey(self, client: _Client, command: Command) -> None:
        reply = await self.commands.carry_out(command)
        if reply is None:
            return
        await client.publish(self._topic(Channel.REPLY), reply.encode(), qos=1)
        _heed_cancellation()

    async def _acknowledged(self, client: _Client, tasks: asyncio.TaskGroup, ack: Ack) -> None:
        if ack.epoch not in {self.epoch, None}:
            return  # of a ledger that was here before, or of a clone of this one
        await self._learn_time(ack)
        lane = self._lanes[ack.stream]
        effects = lane.sender.receive(ack, self._sender_ms())
        if lane.sender.forked:
            # It speaks of another history: its verdicts are on entries that only have the same numbers.
            await self._carry_out(client, tasks, lane, effects)
            return
        if ack.rejected:
            new = await self._write(partial(_note_verdicts, ack.stream, ack.rejected))
            if new:
                log.warning("entries_rejected", stream=ack.stream, entries=new)
        if ack.bounded:
            log.warning("times_bounded", stream=ack.stream, entries=len(ack.bounded))
            await self._write(partial(_note_bounded, ack.stream, ack.bounded))
        await self._carry_out(client, tasks, lane, effects)

    async def _learn_time(self, ack: Ack) -> None:
        """The cloud's clock tells when our monotonic clock was zero, up to the time the acknowledgement travelled.

        That can only make it seem earlier: within a contact the latest is the best.
        """
        self.offset_ms = ack.now_ms - self.clock.now_ms()
        zero_ms = ack.now_ms - self.clock.mono_ms()
        if self._zero_ms is None or zero_ms >= self._zero_ms + OFFSET_MS_MIN:
            await self._write(partial(_note_time, zero_ms))
            self._zero_ms = zero_ms

    def _may_seal(self) -> bool:
        """Whether the ledger knows this boot's true time, or has waited long enough to be told.

        A frame is sealed once: what is sealed before the first acknowledgement keeps a wrong time for ever.
        """
        if self._forked:
            return False  # whatever waits goes into the new epoch
        waited_ms = self._sender_ms() - (self._contact_ms or 0)
        return waited_ms >= TIME_WAIT_MS or outbox.time_known(self.reader, self.clock.boot)

    async def _passed_down(self, piece: SiteFrame | SiteHeads) -> None:
        outcome = await self.site.take(piece, forked=self._forked, before_opening=self._stop_lanes)
        if isinstance(outcome, CloudLost):
            await self._fork("ledger", outcome.reason)
        elif outcome is not None:
            log.warning("epoch_opened", epoch=outcome.epoch, carried=outcome.carried, known=outcome.known)
            self.epoch = outcome.epoch
            raise _EpochOpened
        self._wake.set()

    @property
    def _forked(self) -> bool:
        return any(lane.sender.forked for lane in self._lanes.values())

    def _stop_lanes(self) -> None:
        """Nothing may be sealed or sent any more in this epoch."""
        for lane in self._lanes.values():
            lane.sender.disconnected()

    async def _sync_now(self) -> None:
        """The cloud wants everything that is known, and we what the site's others have."""
        self.site.asking.ask_now(self._sender_ms())
        self.catalog.asking.ask_now(self._sender_ms())
        self._report_soon.set()
        self._twin_changed.set()
        self._wake.set()

    async def _epoch_wanted(self) -> None:
        """The ledger has noted that it is to go on in a new epoch."""
        self._lanes["ledger"].sender.forked = outbox.position(self.reader, "ledger").fork
        self.site.asking.ask_now(self._sender_ms())
        self._wake.set()

    async def _fork(self, stream: Stream, reason: str) -> None:
        """Stop a stream, and fetch what the cloud has of this gateway."""
        log.error("ledger_forked", stream=stream, reason=reason)
        self._lanes[stream].sender.forked = reason
        await self._write(partial(_note_fork, stream, reason))
        self.site.asking.ask_now(self._sender_ms())

    async def _ask(self, client: _Client) -> None:
        """Ask for the site's other logs and for the catalogue when that is due."""
        question = self.site.question()
        if question is not None:
            await client.publish(self._topic(Channel.SITE_ASK), question.encode(), qos=1)
            _heed_cancellation()
        if (wanted := self.catalog.question()) is not None:
            await client.publish(self._topic(Channel.CATALOG_ASK), wanted.encode(), qos=1)
            _heed_cancellation()

    async def _pump(self, client: _Client, tasks: asyncio.TaskGroup) -> None:
        """Feed the senders with what was committed and what time it is."""
        for lane in self._lanes.values():
            await self._carry_out(client, tasks, lane, lane.sender.connected(self._sender_ms()))
        while True:
            self._wake.clear()
            for stream, lane in self._lanes.items():
                now_ms = self._sender_ms()
                waiting = outbox.waiting(self.reader, stream, lane.source_id) if self._may_seal() else 0
                if not waiting:
                    lane.waiting_since_ms = None
                elif lane.waiting_since_ms is None:
                    lane.waiting_since_ms = now_ms
                effects = lane.sender.waiting(waiting, lane.waiting_since_ms or now_ms, now_ms)
                await self._carry_out(client, tasks, lane, effects + lane.sender.tick(now_ms))
            await self._ask(client)
            await self._sleep()

    def _sender_ms(self) -> int:
        """The senders' time: a wall clock that is set back would put off every resend."""
        return self.clock.mono_ms()

    async def _sleep(self) -> None:
        """Until something is committed, a sender's deadline, or the next look at the file."""
        ticking: list[Sender | SiteReader] = [lane.sender for lane in self._lanes.values()]
        ticking += [self.site.asking, self.catalog.asking]
        deadlines = [deadline for each in ticking if (deadline := each.next_deadline_ms()) is not None]
        delay_s = max(0.0, (min(deadlines) - self._sender_ms()) / 1_000) if deadlines else TICK_S
        try:
            async with asyncio.timeout(min(delay_s, TICK_S)):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _carry_out(self, client: _Client, tasks: asyncio.TaskGroup, lane: Lane, effects: list[Effect]) -> None:
        """Carry out what a sender decided; sealing may make it decide more."""
        while effects:
            effect = effects.pop(0)
            match effect:
                case Send(frame):
                    self._send(client, tasks, lane, frame)
                case Seal(entries_max):
                    effects += await self._seal(lane, entries_max)
                case Acked(frame):
                    await self._write(partial(_note_acked, lane.sender.stream, frame))
                case SteppedBack(frame):
                    log.warning("cloud_stepped_back", stream=lane.sender.stream, frame=frame)
                    await self._write(partial(_note_step_back, lane.sender.stream, frame))
                case Forked(reason):
                    await self._fork(lane.sender.stream, reason)

    def _send(self, client: _Client, tasks: asyncio.TaskGroup, lane: Lane, frame: int) -> None:
        stream = lane.sender.stream
        body = outbox.body(self.reader, stream, frame)
        if body is None:
            # The cloud has fallen back behind our frames; the entries are all here, and go up in a new epoch.
            reason = f"the cloud wants frame {frame}, which is no longer kept here"
            log.error("ledger_forked", stream=stream, reason=reason)
            lane.sender.forked = reason
            self.submit(partial(_note_fork, stream, reason))
            self.site.asking.ask_now(self._sender_ms())
            return
        publish = client.publish(topics.up(self.gateway, stream), body, qos=1)
        # A task each, because the window wants several on their way at once; asyncio starts them in order.
        tasks.create_task(publish, name=f"edge[{self.gateway}].uplink.frame[{stream}:{frame}]")

    async def _seal(self, lane: Lane, entries_max: int) -> list[Effect]:
        stream, contact_ms = lane.sender.stream, self._contact_ms
        sealed = await self._write(lambda ledger: Outbox(ledger).seal(stream, entries_max, contact_mono_ms=contact_ms))
        at = outbox.position(self.reader, stream)
        lane.source_id, lane.waiting_since_ms = at.source_id, None
        if sealed is None:
            return lane.sender.nothing_sealed()
        return lane.sender.sealed(sealed.frame, sealed.waiting, self._sender_ms())

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


def _note_acked(stream: Stream, frame: int, ledger: Ledger) -> None:
    Outbox(ledger).acked(stream, frame)


def _note_time(zero_ms: int, ledger: Ledger) -> None:
    Outbox(ledger).learn_time(zero_ms)


def _note_bounded(stream: Stream, told: Sequence[Bounded], ledger: Ledger) -> None:
    Outbox(ledger).bounded(stream, told)


def _note_verdicts(stream: Stream, rejected: Sequence[Rejected], ledger: Ledger) -> int:
    return Outbox(ledger).verdicts(stream, rejected)


def _note_step_back(stream: Stream, frame: int, ledger: Ledger) -> None:
    Outbox(ledger).stepped_back(stream, frame)


def _note_fork(stream: Stream, reason: str, ledger: Ledger) -> None:
    Outbox(ledger).forked(stream, reason)

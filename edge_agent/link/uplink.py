"""The link to the cloud's broker: connects, announces itself, hands each message to its channel's handler, reconnects.

What is shipped is decided by `shipping`; the other parts register what they take (`on`), what they request now and then
(`polls`) and what they do as long as a contact lasts (`during`).

Invariant: nothing that concerns the cloud keeps devices and technicians from working.
"""

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, Protocol

import aiomqtt
import structlog

from edge_agent.errors import EdgeError
from edge_agent.ledger import database
from edge_agent.ledger.clock import Clock
from edge_agent.ledger.database import Connection
from edge_agent.link.cloud_client import CloudClient
from edge_agent.link.contact import Contact, Handler
from edge_agent.link.shipping import EpochOpened, Shipping
from edge_agent.settings import EdgeSettings
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.errors import WireError
from wire_protocol.messages import Ack, GatewayStatus, Message
from wire_protocol.site import SiteReader
from wire_protocol.site_messages import unpack
from wire_protocol.topics import Channel, LinkTopic, Stream

TICK_S: Final = 0.2  # how often entries that another process committed are noticed
INCOMING_MESSAGES_MAX: Final = 1_000
RECONNECT_DELAY_S: Final = 0.5
SLOW_ATTEMPT: Final = 16  # what fails by itself fails again at once: wait as long as after so many attempts
CONNECT_TIMEOUT_S: Final = 10.0
OFFLINE_TIMEOUT_S: Final = 2.0
# An acknowledgement and a report go out one after the other: Nagle's algorithm (RFC 896) would hold the second back
# until the broker's delayed acknowledgement of the first, 40 ms later.
NO_DELAY: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)

log = structlog.get_logger("edge_agent.link.uplink")


class Poll(Protocol):
    """Something that is requested of the cloud now and then."""

    asking: SiteReader

    def question(self) -> Message | None:
        """What to request now; None when nothing is due."""


class Status(Protocol):
    """Makes the gateway's status."""

    def __call__(self, state: Literal["online", "offline"]) -> GatewayStatus: ...


@dataclass(slots=True)
class Uplink:
    """Keeps a connection to the cloud's broker.

    Args:
        brokers: the cloud's, each tried when the one before does not answer.
        gateway: who this is.
        reader: a read-only connection to the ledger, used by the link alone.
        status: makes the gateway's status message.
        shipping: ships the ledger.
        settings, clock: as everywhere.
        tls: what an attempt to connect proves itself with; given how many have failed before it.
    """

    brokers: tuple[BrokerAddress, ...]
    gateway: str
    reader: Connection
    status: Status
    shipping: Shipping
    settings: EdgeSettings
    clock: Clock
    tls: Callable[[int], ssl.SSLContext] = lambda _attempt: ssl.create_default_context()
    _handlers: dict[Channel, Handler] = field(default_factory=dict)
    _polls: dict[Channel, Poll] = field(default_factory=dict)
    _loops: list[tuple[str, Callable[[Contact], Coroutine[Any, Any, None]]]] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _report_soon: asyncio.Event = field(default_factory=asyncio.Event)
    _client: CloudClient | None = None

    def __post_init__(self) -> None:
        self.on(Channel.ACK, self._acknowledged)
        self.on(Channel.SITE_LEDGER, self._passed_down)
        self.polls(Channel.SITE_ASK, self.shipping.site)

    # --- what parts register ------------------------------------------------------------------------------------

    def on(self, channel: Channel, handler: Handler) -> None:
        """Hand the messages of a channel to a handler."""
        assert channel not in self._handlers, channel  # noqa: S101 - a mistake of the programmer
        self._handlers[channel] = handler

    def polls(self, channel: Channel, poll: Poll) -> None:
        """Request something now and then, on a channel."""
        self._polls[channel] = poll

    def during(self, name: str, loop: Callable[[Contact], Coroutine[Any, Any, None]]) -> None:
        """Run something as long as a contact lasts."""
        self._loops.append((name, loop))

    # --- what happens -------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something was committed, or is to be requested. Call it in the event loop's thread."""
        self._wake.set()

    def sync(self) -> None:
        """The cloud wants everything that is known, and we what the cloud has. Call it in the event loop's thread."""
        for poll in self._polls.values():
            poll.asking.ask_now(self.clock.mono_ms())
        self._report_soon.set()
        self._wake.set()

    # --- contacts -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, ship, reconnect, until cancelled."""
        attempt = 0
        while True:
            # The epoch may have changed in a contact that broke while the new one was being opened.
            epoch = database.meta(self.reader)["epoch"]
            broker = self.brokers[0]
            try:
                async with self._connect(broker, epoch, attempt) as client:
                    attempt, self._client = 0, client
                    await self._contact(client, epoch)
            except* EpochOpened:
                log.info("epoch_goes_on", gateway=self.gateway)
            except* EdgeError as errors:
                log.exception("uplink_failed", reason=str(errors.exceptions[0]))
                attempt = SLOW_ATTEMPT
            except* (aiomqtt.MqttError, OSError, TimeoutError) as errors:
                reason = str(errors.exceptions[0])
                if attempt == 0:
                    log.warning("uplink_down", broker=repr(broker), reason=reason)
                if self._client is not None and self._client.taken_over:
                    log.warning("uplink_taken_over", broker=repr(broker))
                    # By a clone of this disk, or to shut us out: a gateway that comes back at once only takes it back.
                    attempt = SLOW_ATTEMPT
                self._client = None
                self.brokers = (*self.brokers[1:], broker)
            # The link broke while we were being cancelled: a task group that has both raises the error alone.
            _heed_cancellation()
            # Full jitter, so that a thousand gateways do not come back in step
            # (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
            ceiling = min(self.settings.reconnect_delay_s_max, RECONNECT_DELAY_S * 2 ** min(attempt, 16))
            attempt += 1
            await asyncio.sleep(random.uniform(0.1, 1.0) * ceiling)  # noqa: S311 - spreading load, not secrecy

    async def say_offline(self) -> None:
        """Announce `offline` on the way out, in a contact of its own; silently given up when there is no link."""
        epoch = database.meta(self.reader)["epoch"]
        try:
            async with asyncio.timeout(OFFLINE_TIMEOUT_S), self._connect(self.brokers[0], epoch) as client:
                await self._announce(client, "offline")
        except (aiomqtt.MqttError, OSError, TimeoutError):
            log.info("offline_not_announced", broker=repr(self.brokers[0]))

    def _connect(self, broker: BrokerAddress, epoch: str, attempt: int = 0) -> CloudClient:
        will = aiomqtt.Will(
            topics.link(self.gateway, Channel.STATUS), self.status("offline").encode(), qos=1, retain=True
        )
        mqtt_5 = self.settings.mqtt_version == "5"
        return CloudClient(
            broker.host,
            broker.port,
            username=broker.user,
            password=broker.password,
            # The epoch, so that a clone of this disk is not kicked off the broker by us, nor we by it: both have goods
            # to report, and the cloud must hear of both to raise an alarm.
            identifier=f"stocktide-{self.gateway}-{epoch[-8:]}",
            protocol=aiomqtt.ProtocolVersion.V5 if mqtt_5 else aiomqtt.ProtocolVersion.V311,
            clean_session=None if mqtt_5 else True,
            will=will,
            keepalive=self.settings.keepalive_s,
            timeout=CONNECT_TIMEOUT_S,
            socket_options=NO_DELAY,
            max_queued_incoming_messages=INCOMING_MESSAGES_MAX,
            tls_context=self.tls(attempt) if broker.tls else None,
        )

    async def _contact(self, client: CloudClient, epoch: str) -> None:
        """Announce, then receive, pump and report until the link breaks."""
        # aiomqtt warns above this many calls on their way; two windows of frames and some reports are no surprise.
        client.pending_calls_threshold = 2 * self.settings.window_frames_max + 8
        await client.subscribe(topics.down_filter(self.gateway), qos=1)
        _heed_cancellation()
        for poll in self._polls.values():
            poll.asking.connected(self.clock.mono_ms())
        await self._announce(client, "online", arrived=True)
        log.info("uplink_up", broker=repr(self.brokers[0]))
        async with asyncio.TaskGroup() as tasks:
            contact = Contact(self.gateway, _Published(client), tasks)
            self.shipping.connected(epoch, partial(self._ship, client, contact))
            contact.start(self._pump(contact), "uplink.pump")
            contact.start(self._announce_regularly(client), "uplink.status")
            for name, loop in self._loops:
                contact.start(loop(contact), f"uplink.{name}")
            # In the body, not a task: a group whose body has ended does not take its own cancellation of us back
            # (Python 3.11), and `run` could not tell it from a real one.
            await self._receive(client, contact)

    async def _receive(self, client: CloudClient, contact: Contact) -> None:
        async for message in client.messages:
            try:
                topic = topics.parse(str(message.topic))
                handler = self._handlers.get(topic.channel)
                if handler is not None and isinstance(topic, LinkTopic):
                    await handler(contact, bytes(message.payload))
            except WireError as error:
                log.warning("message_refused", topic=str(message.topic), reason=str(error))

    async def _announce(
        self, client: CloudClient, state: Literal["online", "offline"], *, arrived: bool = False
    ) -> None:
        status = self.status(state).model_copy(update={"arrived": arrived})
        await client.publish(topics.link(self.gateway, Channel.STATUS), status.encode(), qos=1, retain=True)
        _heed_cancellation()

    async def _announce_regularly(self, client: CloudClient) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.status_interval_s):
                    await self._report_soon.wait()
            self._report_soon.clear()
            await self._announce(client, "online")

    async def _pump(self, contact: Contact) -> None:
        """Ship what there is and request what is due, again and again."""
        await self.shipping.begin()
        while True:
            self._wake.clear()
            await self.shipping.look()
            for channel, poll in self._polls.items():
                if (question := poll.question()) is not None:
                    await contact.publish(channel, question.encode())
            await self._sleep()

    async def _sleep(self) -> None:
        """Until something is committed, a sender's deadline, or the next look at the file."""
        deadlines = (
            self.shipping.next_deadline_ms(),
            *(each.asking.next_deadline_ms() for each in self._polls.values()),
        )
        next_ms = min((at for at in deadlines if at is not None), default=None)
        delay_s = TICK_S if next_ms is None else max(0.0, (next_ms - self.clock.mono_ms()) / 1_000)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(delay_s, TICK_S)):
                await self._wake.wait()

    def _ship(self, client: CloudClient, contact: Contact, stream: Stream, frame: int, body: bytes) -> None:
        """Part of `Shipping`: a frame on its way."""
        publish = client.publish(topics.up(self.gateway, stream), body, qos=1)
        # A task each, because the window wants several on their way at once; asyncio starts them in order.
        contact.start(publish, f"uplink.frame[{stream}:{frame}]")

    async def _acknowledged(self, _contact: Contact, payload: bytes) -> None:
        await self.shipping.acknowledged(Ack.decode(payload))

    async def _passed_down(self, _contact: Contact, payload: bytes) -> None:
        for piece in unpack(payload):
            await self.shipping.passed_down(piece)
        self._wake.set()


@dataclass(frozen=True, slots=True)
class _Published:
    """A connection whose publishing heeds cancellations."""

    client: CloudClient

    async def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        """Part of `contact.Publishing`."""
        await self.client.publish(topic, payload, qos=qos, retain=retain)
        _heed_cancellation()


def _heed_cancellation() -> None:
    """Raise a cancellation of the current task that was swallowed.

    aiomqtt waits with `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that comes together with the
    answer (https://bugs.python.org/issue37658); the task would go on as if nobody wanted it to end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError

"""The link to the cloud's broker: connects, announces itself, hands each message to its channel's handler, reconnects.

What is shipped is decided by `shipping`; the other parts register what they take (`on`), what they request now and then
(`polls`) and what they do as long as a contact lasts (`during`).

Invariant: nothing that concerns the cloud keeps devices and technicians from working.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, Protocol

import structlog

from edge_agent.conditions import Conditions, Part
from edge_agent.errors import EdgeError
from edge_agent.ledger import database
from edge_agent.ledger.clock import Clock
from edge_agent.ledger.database import Connection as Reader
from edge_agent.link.contact import Contact, Handler
from edge_agent.link.shipping import EpochOpened, Shipping
from edge_agent.settings import EdgeSettings
from mqtt_client import (
    Backoff,
    Connection,
    ConnectionLost,
    ConnectionOptions,
    LastWill,
    MessageTooLarge,
    Problem,
    Stage,
    connect,
    explain,
    stay_connected,
)
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.errors import WireError
from wire_protocol.messages import Ack, GatewayStatus, Message
from wire_protocol.poll_timer import PollTimer
from wire_protocol.site_messages import unpack
from wire_protocol.topics import Channel, LinkTopic, Stream

TICK_S: Final = 0.2  # how often entries that another process committed are noticed
INCOMING_MESSAGES_MAX: Final = 1_000
RECONNECT_DELAY_S: Final = 0.5
STEADY_S: Final = 10.0  # a contact that lasts so long was none of a row of failures
CONNECT_TIMEOUT_S: Final = 10.0
OFFLINE_TIMEOUT_S: Final = 2.0
ANSWER_S: Final = 30.0  # without an answer to what waits for one, for so long, nobody acknowledges
LOOK_S: Final = 5.0
SILENT_HINT: Final = "Does a worker run (stocktide cloud ingest), and is this gateway registered and active there?"

log = structlog.get_logger("edge_agent.link.uplink")


class Poll(Protocol):
    """Something that is requested of the cloud now and then."""

    timer: PollTimer

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
        conditions: where it is kept how the link and the cloud are.
    """

    brokers: tuple[BrokerAddress, ...]
    gateway: str
    reader: Reader
    status: Status
    shipping: Shipping
    settings: EdgeSettings
    clock: Clock
    tls: Callable[[int], ssl.SSLContext] = lambda _attempt: ssl.create_default_context()
    conditions: Conditions = field(default_factory=Conditions)
    _handlers: dict[Channel, Handler] = field(default_factory=dict)
    _polls: dict[Channel, Poll] = field(default_factory=dict)
    _loops: list[tuple[str, Callable[[Contact], Coroutine[Any, Any, None]]]] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _report_soon: asyncio.Event = field(default_factory=asyncio.Event)
    _backoff: Backoff = field(init=False)
    _connection: Connection | None = None
    _too_large: tuple[Stream, int] | None = None
    # Why each broker could not be reached, since there was a connection; and when an answer began to be waited for.
    _problems: dict[BrokerAddress, Problem] = field(default_factory=dict)
    _waiting_since_ms: int | None = None

    def __post_init__(self) -> None:
        self._backoff = Backoff(RECONNECT_DELAY_S, self.settings.reconnect_delay_s_max)
        self.on(Channel.ACK, self._acknowledged)
        self.on(Channel.SITE_LEDGER, self._passed_down)
        self.polls(Channel.SITE_REQUEST, self.shipping.site)

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
            poll.timer.poll_now(self.clock.mono_ms())
        self._report_soon.set()
        self._wake.set()

    # --- contacts -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, ship, reconnect, until cancelled."""
        await stay_connected(self._contact, self._lost, self._backoff, f"edge[{self.gateway}].uplink.contact")

    async def say_offline(self) -> None:
        """Announce `offline` on the way out, in a contact of its own; silently given up when there is no link."""
        try:
            async with asyncio.timeout(OFFLINE_TIMEOUT_S), connect(self._options()) as connection:
                await self._announce(connection, "offline")
        except (ConnectionLost, TimeoutError):
            log.info("offline_not_announced", broker=repr(self.brokers[0]))

    async def _contact(self) -> None:
        """One contact, from connecting to its end."""
        # The epoch may have changed in a contact that broke while the new one was being opened.
        epoch = database.meta(self.reader)["epoch"]
        try:
            async with connect(self._options(epoch)) as connection:
                self._connection = connection
                await self._serve(connection, epoch)
        except* EpochOpened:
            log.info("epoch_goes_on", gateway=self.gateway)
        except* EdgeError as errors:
            error = _first_of(errors)
            if self._note_problem(self.brokers[0], Problem(Stage.TLS, str(error), error.hint or "See the log.")):
                log.exception("uplink_failed", reason=str(error))
            self._connection = None
            self._backoff.slow_down()

    def _lost(self, error: ConnectionLost) -> None:
        broker, connection = self.brokers[0], self._connection
        self._connection = None
        self.brokers = (*self.brokers[1:], broker)
        if connection is not None and connection.was_taken_over:
            why = "Another client connected under this gateway's name: a clone of its disk, or another agent."
            hint = "Look for a second machine with this ledger. Only one of them may go on as this gateway."
            self._note_problem(broker, Problem(Stage.LOST, why, hint))
            log.warning("uplink_taken_over", broker=repr(broker))
            # By a clone of this disk, or to shut us out: a gateway that comes back at once only takes it back.
            self._backoff.slow_down()
            return
        self._note_problem(broker, explain(error, broker, was_connected=connection is not None))

    def _note_problem(self, broker: BrokerAddress, problem: Problem) -> bool:
        """Say once why there is no link, for each broker that was tried. Returns whether it is another reason now."""
        certificate = self.conditions[Part.CERTIFICATE]
        if (
            broker.tls
            and problem.stage in {Stage.TLS, Stage.CONNECT}
            and certificate is not None
            and not certificate.ok
        ):
            # What TLS says of it names no file and no date.
            problem = problem._replace(why=certificate.why or problem.why, hint=certificate.hint or problem.hint)
        is_new = self._problems.get(broker) != problem
        self._problems[broker] = problem
        known = sorted(self._problems.items(), key=lambda each: repr(each[0]))
        why = known[0][1].why if len(known) == 1 else "; ".join(f"{address!r}: {each.why}" for address, each in known)
        self.conditions.note(Part.LINK, f"down ({known[0][1].stage})", ok=False, why=why, hint=known[0][1].hint)
        self.conditions.note(Part.CLOUD, "out of reach", ok=False, why="There is no link to the cloud's broker.")
        if is_new:
            log.warning("uplink_down", broker=repr(broker), reason=problem.why, hint=problem.hint)
        return is_new

    def _options(self, epoch: str | None = None) -> ConnectionOptions:
        broker, settings = self.brokers[0], self.settings
        log_epoch = epoch or database.meta(self.reader)["epoch"]
        return ConnectionOptions(
            address=broker,
            # The epoch, so that a clone of this disk is not kicked off the broker by us, nor we by it: both have goods
            # to report, and the cloud must hear of both to raise an alarm.
            client_id=f"stocktide-{self.gateway}-{log_epoch[-8:]}",
            mqtt_5=settings.mqtt_version == "5",
            keepalive_s=settings.keepalive_s,
            timeout_s=CONNECT_TIMEOUT_S,
            tls=self.tls(self._backoff.failures) if broker.tls else None,
            will=LastWill(topics.link(self.gateway, Channel.STATUS), self.status("offline").encode()),
            incoming_max=INCOMING_MESSAGES_MAX,
            # Two windows of frames and some reports on their way are no surprise.
            calls_max=2 * settings.window_frames_max + 8,
            # Nothing else to do: the frame stays unacknowledged, so its sender sends it again.
            publish_refused=lambda reason: log.warning("publish_refused", reason=reason),
        )

    async def _serve(self, connection: Connection, epoch: str) -> None:
        """Announce, then receive, pump and report until the link breaks."""
        await connection.subscribe(topics.down_filter(self.gateway))
        for poll in self._polls.values():
            poll.timer.connected(self.clock.mono_ms())
        await self._announce(connection, "online", arrived=True)
        self._problems.clear()
        self._waiting_since_ms = self.clock.mono_ms()
        self.conditions.note(Part.LINK, "up", ok=True)
        log.info("uplink_up", broker=repr(self.brokers[0]))
        async with asyncio.TaskGroup() as tasks:
            contact = Contact(self.gateway, connection, tasks)
            self.shipping.connected(
                epoch,
                partial(self._ship, connection, contact),
                lambda stream: connection.payload_bytes_max(topics.up(self.gateway, stream)),
            )
            contact.start(self._pump(contact), "uplink.pump")
            contact.start(self._announce_regularly(connection), "uplink.status")
            contact.start(self._steady(), "uplink.steady")
            contact.start(self._watch_answers(), "uplink.answers")
            for name, loop in self._loops:
                contact.start(loop(contact), f"uplink.{name}")
            await self._receive(connection, contact)

    async def _steady(self) -> None:
        """A contact that lasts was no failure; a broker that ends each soon is asked ever less often."""
        await asyncio.sleep(STEADY_S)
        self._backoff.reset()

    async def _watch_answers(self) -> None:
        """Notice a broker behind which nobody acknowledges; `_acknowledged` notices that somebody does."""
        while True:
            since_ms = self._waiting_since_ms
            if since_ms is not None and self.clock.mono_ms() - since_ms > ANSWER_S * 1_000:
                why = "The broker takes what this gateway sends, and nobody acknowledges it."
                if self.conditions.note(Part.CLOUD, "silent", ok=False, why=why, hint=SILENT_HINT):
                    log.warning("cloud_silent", broker=repr(self.brokers[0]), hint=SILENT_HINT)
            elif since_ms is None and self.shipping.is_waiting():
                self._waiting_since_ms = self.clock.mono_ms()
            await asyncio.sleep(LOOK_S)

    async def _receive(self, connection: Connection, contact: Contact) -> None:
        async for message in connection.messages():
            try:
                topic = topics.parse(message.topic)
                handler = self._handlers.get(topic.channel)
                if handler is not None and isinstance(topic, LinkTopic):
                    await handler(contact, message.payload)
            except WireError as error:
                log.warning("message_refused", topic=message.topic, reason=str(error))

    async def _announce(
        self, connection: Connection, state: Literal["online", "offline"], *, arrived: bool = False
    ) -> None:
        status = self.status(state).model_copy(update={"arrived": arrived})
        try:
            await connection.publish(topics.link(self.gateway, Channel.STATUS), status.encode(), retain=True)
        except MessageTooLarge as error:
            log.error("message_too_large", channel=Channel.STATUS, reason=str(error), hint=error.hint)  # noqa: TRY400

    async def _announce_regularly(self, connection: Connection) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.status_interval_s):
                    await self._report_soon.wait()
            self._report_soon.clear()
            await self._announce(connection, "online")

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
            *(each.timer.next_deadline_ms() for each in self._polls.values()),
        )
        next_ms = min((at for at in deadlines if at is not None), default=None)
        delay_s = TICK_S if next_ms is None else max(0.0, (next_ms - self.clock.mono_ms()) / 1_000)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(delay_s, TICK_S)):
                await self._wake.wait()

    def _ship(self, connection: Connection, contact: Contact, stream: Stream, frame: int, body: bytes) -> None:
        """Part of `Shipping`: a frame on its way."""
        # A task each, because the window wants several on their way at once; asyncio starts them in order.
        contact.start(self._put(connection, stream, frame, body), f"uplink.frame[{stream}:{frame}]")

    async def _put(self, connection: Connection, stream: Stream, frame: int, body: bytes) -> None:
        try:
            await connection.publish(topics.up(self.gateway, stream), body)
        except MessageTooLarge as error:
            # It was sealed when a broker took more. Its sender tries it ever more seldom; it is said once.
            if (stream, frame) != self._too_large:
                self._too_large = stream, frame
                reason, hint = str(error), error.hint
                log.error("frame_too_large", stream=stream, frame=frame, reason=reason, hint=hint)  # noqa: TRY400

    async def _acknowledged(self, _contact: Contact, payload: bytes) -> None:
        ack = Ack.decode(payload)
        self._note_answer(ack)
        await self.shipping.acknowledged(ack)

    def _note_answer(self, ack: Ack) -> None:
        self._waiting_since_ms = None
        if ack.fork is not None:
            why = f"The cloud has another history of {ack.stream}: {ack.fork}."
            hint = "The agent fetches what it lacks and opens a new epoch by itself."
            self.conditions.note(Part.CLOUD, "quarantine", ok=False, why=why, hint=hint)
        elif ack.window == 0:
            why = "The cloud takes nothing just now: its database is away, or this tenant is above its quota."
            if self.conditions.note(
                Part.CLOUD, "holding", ok=False, why=why, hint="Nothing is lost; it goes on by itself."
            ):
                log.warning("cloud_holding", broker=repr(self.brokers[0]))
        elif self.conditions.note(Part.CLOUD, "acknowledging", ok=True):
            log.info("cloud_acknowledging", broker=repr(self.brokers[0]))

    async def _passed_down(self, _contact: Contact, payload: bytes) -> None:
        for piece in unpack(payload):
            await self.shipping.passed_down(piece)
        self._wake.set()


def _first_of(errors: BaseExceptionGroup[EdgeError]) -> EdgeError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, EdgeError)  # noqa: S101 - the group holds nothing else
    return error

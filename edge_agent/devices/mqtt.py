"""The gateway's own broker: messages of devices in, messages to devices out. The only user of paho-mqtt.

The session at the broker is persistent, and a message is acknowledged by hand, after its receiver has dealt with it:
what was not acknowledged is delivered again, whichever process crashes.

Invariant: this module decides nothing about messages; it knows no ledger, and of topics the one that it probes.
Invariant: with an `mqtts://` address there is TLS and the broker's certificate is verified, or there is no connection.
"""

import socket
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from types import TracebackType
from typing import Any, Final, NamedTuple, ParamSpec, Self

import structlog
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.conditions import Conditions, Part
from edge_agent.devices import quick_publish
from edge_agent.signals import Signal
from mqtt_client import ANSWERED_NOTHING, MessageTooLarge, Problem, Stage, client_context, explain
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.names import AGENT_USER
from wire_protocol.topics import Channel

SESSION_EXPIRY_S: Final = 0xFFFF_FFFF  # never: the broker keeps what came while the agent was away (MQTT 5, 3.1.2.11.2)
RECONNECT_DELAY_S_MAX: Final = 10
TOPIC_CHARS_MAX: Final = 512
PACKET_OVERHEAD_BYTES: Final = 16  # beside topic and payload, as in `mqtt_client.connection`
PACKET_BYTES_MAX: Final = 268_435_455 + 5  # the largest that MQTT knows
TOO_LARGE_REMEMBERED_MAX: Final = 100
# The agent alone may publish here, and no device has the agent's name: a broker that takes it takes us for the agent.
PROBE_TOPIC: Final = topics.RULES[Channel.DEVICE_RECEIPT].pattern.format(device=AGENT_USER)
TLS_HINT: Final = "See STOCKTIDE_EDGE_LOCAL_CA_FILE."

P = ParamSpec("P")

log = structlog.get_logger("edge_agent.devices.mqtt")


class Delivery(NamedTuple):
    """What the broker is owed for a message."""

    mid: int
    qos: int
    session: int


class Received(NamedTuple):
    """A message as it came; `topic` is readable even when it was not UTF-8."""

    topic: str
    payload: bytes
    delivery: Delivery
    retained: bool = False


def _guarded(callback: Callable[P, None]) -> Callable[P, None]:
    """A callback of the client's thread; one that raises would end the thread, and with it the gateway's hearing."""

    @wraps(callback)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception:
            log.exception("local_broker_callback_failed")

    return run


class DeviceBroker:
    """The connection to the gateway's broker, kept up by a thread of its own; use it as a context manager.

    `received` is sent for each message, and waits as long as its receiver does, which holds the broker back;
    `subscribed` is sent when the broker has confirmed the subscriptions. Both in the connection's thread.

    Args:
        address: the gateway's own broker.
        gateway: names the persistent session.
        subscriptions: topic filters with their QoS.
        mqtt_5: speak MQTT 5; otherwise 3.1.1.
        keepalive_s: MQTT keepalive in seconds.
        inflight_max: how many messages the broker may have unacknowledged.
        ca_file: the authorities that a broker with TLS is trusted by; None for the system's.
        conditions: where it is kept how the connection is.

    Raises:
        TlsUnusable: the file of authorities cannot be used, or is given for a connection without TLS.
    """

    def __init__(
        self,
        address: BrokerAddress,
        gateway: str,
        subscriptions: Sequence[tuple[str, int]],
        *,
        mqtt_5: bool,
        keepalive_s: int,
        inflight_max: int,
        ca_file: str | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        quick_publish.install()
        tls = client_context(address, ca_file, hint=TLS_HINT)
        self._conditions = conditions or Conditions()
        # What the broker said last; nothing is known before the first contact.
        self._packet_bytes_max = PACKET_BYTES_MAX
        self._too_large: set[str] = set()
        self._probe = 0
        self._is_answered = False
        self.received: Signal[[Received]] = Signal()
        self.subscribed: Signal[[]] = Signal()
        self.connected = threading.Event()
        self._address, self._subscriptions = address, list(subscriptions)
        self._mqtt_5, self._keepalive_s, self._inflight_max = mqtt_5, keepalive_s, inflight_max
        # A reconnect makes a new session of message ids; acknowledgements of the old one must not be sent into it.
        self._session = 0
        self._client = _Client(
            self._failed,
            CallbackAPIVersion.VERSION2,
            client_id=f"stocktide-agent-{gateway}",
            protocol=MQTTProtocolVersion.MQTTv5 if mqtt_5 else MQTTProtocolVersion.MQTTv311,
            manual_ack=True,
            clean_session=None if mqtt_5 else False,
        )
        self._client.on_connect = self._on_connect
        self._client.on_socket_open = _no_delay
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(min_delay=1, max_delay=RECONNECT_DELAY_S_MAX)
        if address.user is not None:
            self._client.username_pw_set(address.user, address.password)
        if tls is not None:
            self._client.tls_set_context(tls)

    def __enter__(self) -> Self:
        options: dict[str, Any] = {}
        if self._mqtt_5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY_S
            properties.ReceiveMaximum = self._inflight_max
            options = {"clean_start": False, "properties": properties}
        self._client.connect_async(self._address.host, self._address.port, self._keepalive_s, **options)
        self._client.loop_start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take no more messages; the broker keeps the rest in the session."""
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        """Publish, without waiting; what is published while the broker is away goes out when it is back.

        What is larger than the broker takes would end the connection of all devices: it is named in the log and
        not sent.
        """
        if len(payload) > (bytes_max := self.payload_bytes_max(topic)):
            if topic not in self._too_large and len(self._too_large) < TOO_LARGE_REMEMBERED_MAX:
                self._too_large.add(topic)
                error = MessageTooLarge(topic, len(payload), bytes_max)
                log.error("message_too_large", broker=repr(self._address), reason=str(error), hint=error.hint)
            return
        self._client.publish(topic, payload, qos=qos, retain=retain)

    def payload_bytes_max(self, topic: str) -> int:
        """The largest payload that the broker takes on a topic, as far as it has said (MQTT 5 only)."""
        return self._packet_bytes_max - PACKET_OVERHEAD_BYTES - len(topic.encode())

    def acknowledge(self, delivery: Delivery) -> None:
        """The message is stored: acknowledge it to the broker."""
        if delivery.qos and delivery.session == self._session:
            self._client.ack(delivery.mid, delivery.qos)

    @_guarded
    def _on_connect(
        self, client: Client, _userdata: Any, _flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._is_answered = True
        if reason.is_failure:
            self._failed(ConnectionError(str(reason)))
            return
        said = {} if properties is None else vars(properties)
        self._packet_bytes_max = min(PACKET_BYTES_MAX, said.get("MaximumPacketSize", PACKET_BYTES_MAX))
        self._session += 1
        client.subscribe(self._subscriptions)

    @_guarded
    def _on_subscribe(
        self, client: Client, _userdata: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        refused = next((reason for reason in reasons if reason.is_failure), None)
        if refused is not None:
            self._deaf(f"The broker refuses the subscriptions: {refused}.")
            return
        # A broker grants subscriptions to any user and delivers nothing; what it lets us publish tells who we are.
        client.on_publish = self._on_probed
        self._probe = client.publish(PROBE_TOPIC, b"", qos=1).mid

    @_guarded
    def _on_probed(
        self, client: Client, _userdata: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if mid != self._probe:
            return
        client.on_publish = None
        if reason.is_failure:
            self._deaf(f"The broker does not take {self._who} for the agent, and gives it no events: {reason}.")
            return
        self.connected.set()
        self.subscribed.send()
        why = None
        if self._address.user not in {None, AGENT_USER} and not self._mqtt_5:
            why = f"MQTT 3.1.1 cannot tell whether {self._who} gets the devices' events; the account is {AGENT_USER!r}."
        if self._conditions.note(Part.DEVICES, "listening", ok=True, why=why):
            log.info("listening_to_devices", broker=repr(self._address), note=why)

    @property
    def _who(self) -> str:
        return "a client without a user" if self._address.user is None else f"user {self._address.user!r}"

    def _deaf(self, why: str) -> None:
        hint = f"The agent's account at its broker is {AGENT_USER!r}: mqtt://{AGENT_USER}:PASSWORD@HOST in LOCAL_URL."
        if self._conditions.note(Part.DEVICES, "deaf", ok=False, why=why, hint=hint):
            log.error("local_broker_gives_nothing", broker=repr(self._address), reason=why, hint=hint)

    def _failed(self, error: BaseException) -> None:
        """There is no connection. It is tried again by itself; the log says it once."""
        problem = explain(error, self._address, was_connected=self.connected.is_set())
        self.connected.clear()
        if self._conditions.note(Part.DEVICES, f"away ({problem.stage})", ok=False, why=problem.why, hint=problem.hint):
            event = "local_broker_refused" if problem.stage is Stage.CONNECT else "local_broker_away"
            log.warning(event, broker=repr(self._address), reason=problem.why, hint=problem.hint)

    @_guarded
    def _on_disconnect(
        self, _client: Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if self.connected.is_set():
            self.connected.clear()
            why = f"The connection ended: {reason}."
            problem = Problem(
                Stage.LOST, why, "It is opened again by itself; if it does not last, see the broker's log."
            )
            self._conditions.note(Part.DEVICES, "away (lost)", ok=False, why=problem.why, hint=problem.hint)
            log.warning("local_broker_disconnected", broker=repr(self._address), reason=str(reason))
        elif not self._is_answered:
            self._failed(ConnectionError(ANSWERED_NOTHING))
        self._is_answered = False

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        # paho's own property raises where the topic is not UTF-8.
        topic = bytes(message._topic).decode(errors="replace")[:TOPIC_CHARS_MAX]  # noqa: SLF001 - as said
        delivery = Delivery(message.mid, message.qos, self._session)
        self.received.send(Received(topic, bytes(message.payload), delivery, message.retain))


def _no_delay(_client: Client, _userdata: Any, opened: Any) -> None:
    """An acknowledgement and a receipt go out one after the other: Nagle's algorithm would hold the second back."""
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Client(Client):
    """paho's client, which says why it could not connect, and does not end over a host that no DNS can be asked for."""

    def __init__(self, failed: Callable[[BaseException], None], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._failed = failed

    def reconnect(self) -> MQTTErrorCode:
        """Part of paho: called for each attempt, in the client's thread; it tries again after an OSError alone."""
        try:
            return super().reconnect()
        except Exception as error:
            self._failed(error)
            if isinstance(error, OSError):
                raise
            raise OSError(str(error)) from error

"""The gateway's own broker: messages of devices in, messages to devices out. The only importer of paho-mqtt.

The session at the broker is persistent, and a message is acknowledged by hand, after its receiver has dealt with it:
what was not acknowledged is delivered again, whichever process crashes.

Invariant: this module decides nothing about messages; it knows no topic and no ledger.
"""

import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import structlog
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.signals import Signal
from wire_protocol.address import BrokerAddress

SESSION_EXPIRY_S: Final = 0xFFFF_FFFF  # never: the broker keeps what came while the agent was away (MQTT 5, 3.1.2.11.2)
RECONNECT_DELAY_S_MAX: Final = 10
TOPIC_CHARS_MAX: Final = 512

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
    ) -> None:
        self.received: Signal[[Received]] = Signal()
        self.subscribed: Signal[[]] = Signal()
        self.connected = threading.Event()
        self._address, self._subscriptions = address, list(subscriptions)
        self._mqtt_5, self._keepalive_s, self._inflight_max = mqtt_5, keepalive_s, inflight_max
        # A reconnect makes a new session of message ids; acknowledgements of the old one must not be sent into it.
        self._session = 0
        self._client = Client(
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
        if address.tls:
            self._client.tls_set()

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
        """Publish, without waiting; what is published while the broker is away goes out when it is back."""
        self._client.publish(topic, payload, qos=qos, retain=retain)

    def acknowledge(self, delivery: Delivery) -> None:
        """The message is stored: acknowledge it to the broker."""
        if delivery.qos and delivery.session == self._session:
            self._client.ack(delivery.mid, delivery.qos)

    def _on_connect(
        self, client: Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            log.warning("local_broker_refused", broker=repr(self._address), reason=str(reason))
            return
        self._session += 1
        client.subscribe(self._subscriptions)

    def _on_subscribe(
        self, _client: Client, _userdata: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            log.error("local_broker_refuses_subscription", broker=repr(self._address), reason=str(reasons[0]))
            return
        self.connected.set()
        self.subscribed.send()
        log.info("listening_to_devices", broker=repr(self._address))

    def _on_disconnect(
        self, _client: Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if self.connected.is_set():
            log.warning("local_broker_disconnected", broker=repr(self._address), reason=str(reason))
        self.connected.clear()

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        # paho's own property raises where the topic is not UTF-8.
        topic = bytes(message._topic).decode(errors="replace")[:TOPIC_CHARS_MAX]  # noqa: SLF001 - as said
        self.received.send(Received(topic, bytes(message.payload), Delivery(message.mid, message.qos, self._session)))


def _no_delay(_client: Client, _userdata: Any, opened: Any) -> None:
    """An acknowledgement and a receipt go out one after the other: Nagle's algorithm would hold the second back."""
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

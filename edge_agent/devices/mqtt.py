"""The device side: messages from the gateway's own broker into the ledger. The only importer of paho-mqtt.

The session at the broker is persistent and messages are acknowledged by hand, after the SQLite commit: what was not
committed is delivered again, whoever crashes. After each commit every device also gets a receipt with the event ids
that are now durable, because an MQTT acknowledgement from a broker in between only proves that the broker has the
message in its memory.

Invariant: a message is acknowledged after it is in the ledger or in the dead letters, and not before.
"""

import json
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import structlog
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.devices.dead_letters import redraft
from edge_agent.errors import BadInput, UnknownDevice
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from edge_agent.ledger.writer import Append, LedgerWriter
from edge_agent.provisioning import firmware
from edge_agent.provisioning.twin import Configured
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.errors import WireError
from wire_protocol.firmware import FirmwareAsk
from wire_protocol.messages import DeviceCommand, DeviceReceipt, DeviceStatus, Refusal
from wire_protocol.names import EVENT_ID_PATTERN
from wire_protocol.topics import Channel, DeviceTopic

RECEIPT_IDS_MAX: Final = 500
SESSION_EXPIRY_S: Final = 0xFFFF_FFFF  # never: the broker keeps what came while the agent was away (MQTT 5, 3.1.2.11.2)
RECONNECT_DELAY_S_MAX: Final = 10
DEAD_LETTER_BYTES_MAX: Final = 64 * 1024

log = structlog.get_logger("edge_agent.devices.mqtt")


@dataclass(frozen=True, slots=True)
class Token:
    """What is owed to the broker and the device once a message is durable."""

    mid: int
    qos: int
    session: int
    device: str
    event: str


class DeviceSide:
    """Subscribes to the gateway's broker and feeds the writer; use as a context manager.

    Args:
        address: the gateway's own broker.
        gateway: names the persistent session.
        writer: a function returning the writer (it and this object know each other).
        known: whether a device may speak here.
        configs: what every device of the twin is told; asked for at each contact with the broker, in its thread.
        offers: which firmware devices, or one, are to run; asked for as `configs`, and when a device says what it is.
        asked: a device asks for a piece of an image; called in the broker's thread.
        confirmed: called after what a device says of itself was committed, in the writer's thread.
        mqtt_5: speak MQTT 5; otherwise 3.1.1.
        keepalive_s: MQTT keepalive in seconds.
        inflight_max: how many messages the broker may have unacknowledged.
    """

    def __init__(
        self,
        address: BrokerAddress,
        gateway: str,
        writer: Callable[[], LedgerWriter],
        known: Callable[[str], bool],
        *,
        configs: Callable[[], Sequence[Configured]] = tuple,
        offers: Callable[[str | None], Sequence[Configured]] = lambda _: (),
        asked: Callable[[str, FirmwareAsk], None] = lambda _device, _ask: None,
        confirmed: Callable[[], None] = lambda: None,
        mqtt_5: bool,
        keepalive_s: int,
        inflight_max: int,
    ) -> None:
        self._address, self._writer, self._known = address, writer, known
        self._configs, self._offers, self._asked, self._confirmed = configs, offers, asked, confirmed
        self._mqtt_5, self._keepalive_s, self._inflight_max = mqtt_5, keepalive_s, inflight_max
        self.connected = threading.Event()
        # A reconnect makes a new session of message ids; acknowledgements of the old one must not be sent into it.
        self._session = 0
        version = MQTTProtocolVersion.MQTTv5 if mqtt_5 else MQTTProtocolVersion.MQTTv311
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"stocktide-agent-{gateway}",
            protocol=version,
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

    def settle(self, appended: list[Append]) -> None:
        """Acknowledge committed messages and tell their devices; runs in the writer's thread after the commit."""
        committed: dict[str, list[str]] = defaultdict(list)
        for append in appended:
            token: Token = append.token
            self._acknowledge(token)
            committed[token.device].append(token.event)
        for device, events in committed.items():
            for start in range(0, len(events), RECEIPT_IDS_MAX):
                self._receipt(device, DeviceReceipt(committed=tuple(events[start : start + RECEIPT_IDS_MAX])))

    def configure(self, told: Sequence[Configured]) -> None:
        """Tell devices what they are to be; kept by the broker for those that are not there now."""
        for device, payload in told:
            self._client.publish(topics.device(device, Channel.DEVICE_CONFIG), payload, qos=1, retain=True)

    def offer(self, told: Sequence[Configured]) -> None:
        """Tell devices which firmware they are to run; kept by the broker for those that are not there now."""
        for device, payload in told:
            self._client.publish(topics.device(device, Channel.DEVICE_FIRMWARE), payload, qos=1, retain=True)

    def chunk(self, device: str, payload: bytes) -> None:
        """Give a device a piece of an image; one that is lost is asked for again."""
        self._client.publish(topics.device(device, Channel.DEVICE_FIRMWARE_CHUNK), payload, qos=0)

    def locate(self, device: str, seconds: int) -> None:
        """Let a device blink and beep."""
        command = DeviceCommand(seconds=seconds)
        self._client.publish(topics.device(device, Channel.DEVICE_COMMAND), command.encode(), qos=1)

    def _on_connect(
        self, client: Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            log.warning("local_broker_refused", broker=repr(self._address), reason=str(reason))
            return
        self._session += 1
        channels = (Channel.DEVICE_EVENT, Channel.DEVICE_READING, Channel.DEVICE_STATUS)
        asks = (topics.device_filter(Channel.DEVICE_FIRMWARE_ASK), 0)
        client.subscribe([*((topics.device_filter(channel), 1) for channel in channels), asks])

    def _on_subscribe(
        self, _client: Client, _userdata: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            log.error("local_broker_refuses_subscription", broker=repr(self._address), reason=str(reasons[0]))
            return
        self.connected.set()
        # Retained, but a broker without its memory has forgotten.
        self.configure(self._configs())
        self.offer(self._offers(None))
        log.info("listening_to_devices", broker=repr(self._address))

    def _on_disconnect(
        self, _client: Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if self.connected.is_set():
            log.warning("local_broker_disconnected", broker=repr(self._address), reason=str(reason))
        self.connected.clear()

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        """Turn a message into work for the writer; waits while its queue is full, which holds the broker back."""
        try:
            self._take(message)
        except (WireError, BadInput, UnknownDevice, UnicodeDecodeError) as error:
            self._dead_letter(message, str(error))
        except Exception as error:
            # A defect of ours; an exception here would end the client's thread, and the gateway would be deaf.
            log.exception("message_not_understood", topic=addressee_topic(message))
            self._dead_letter(message, f"internal error: {type(error).__name__}")

    def _take(self, message: MQTTMessage) -> None:
        topic = topics.parse(message.topic)
        if not isinstance(topic, DeviceTopic):
            raise BadInput("this topic is not for devices")
        if not self._known(topic.device):
            raise UnknownDevice(f"device {topic.device} is not registered at this gateway")
        payload = bytes(message.payload)
        if topic.channel is Channel.DEVICE_STATUS:
            self._note_status(topic.device, DeviceStatus.decode(payload), message)
            return
        if topic.channel is Channel.DEVICE_FIRMWARE_ASK:
            self._asked(topic.device, FirmwareAsk.decode(payload))
            return
        made = redraft(message.topic, payload)
        self._writer().append(made, self._token(message, topic.device, made.event or ""))

    def _token(self, message: MQTTMessage, device: str = "", event: str = "") -> Token:
        return Token(message.mid, message.qos, self._session, device, event)

    def _note_status(self, device: str, status: DeviceStatus, message: MQTTMessage) -> None:
        def note(ledger: Ledger) -> None:
            ledger.connection.execute(statement("device_status"), (status.state, ledger.clock.now_ms(), device))
            if status.config_version is not None:
                answer = (status.config_version, status.config_problem, device)
                ledger.connection.execute(statement("confirm_config"), answer)
            if status.model is not None:
                firmware.note(ledger, device, status)

        done = self._settle_after(note, self._token(message), refused=None)
        if status.config_version is not None or status.model is not None:
            done.add_done_callback(lambda _: self._confirmed())
        if status.model is not None:
            # It may have said for the first time what it is.
            done.add_done_callback(lambda _: self.offer(self._offers(device)))

    def _dead_letter(self, message: MQTTMessage, reason: str) -> None:
        """Keep the message with its reason, then acknowledge it: the stream goes on."""
        topic = addressee_topic(message)
        payload = bytes(message.payload[:DEAD_LETTER_BYTES_MAX])

        def keep(ledger: Ledger) -> None:
            row = (ledger.clock.now_ms(), topic, payload, reason)
            ledger.connection.execute(statement("insert_dead_letter"), row)

        log.warning("message_dead_lettered", topic=topic, reason=reason)
        self._settle_after(keep, self._token(message, *addressee(topic, payload)), refused=reason)

    def _settle_after(self, write: Callable[[Ledger], None], token: Token, *, refused: str | None) -> "Future[None]":
        """Acknowledge a message once `write` is committed; when it fails, the broker delivers the message again."""

        def settle(done: Future[None]) -> None:
            if done.exception() is not None:
                return
            self._acknowledge(token)
            if refused is not None and token.event:
                self._receipt(token.device, DeviceReceipt(refused=(Refusal(id=token.event, reason=refused[:200]),)))

        future = self._writer().settle(write)
        future.add_done_callback(settle)
        return future

    def _acknowledge(self, token: Token) -> None:
        if token.qos and token.session == self._session:
            self._client.ack(token.mid, token.qos)

    def _receipt(self, device: str, receipt: DeviceReceipt) -> None:
        self._client.publish(topics.device(device, Channel.DEVICE_RECEIPT), receipt.encode(), qos=0)


def _no_delay(_client: Client, _userdata: Any, opened: Any) -> None:
    """An acknowledgement and a receipt go out one after the other: Nagle's algorithm would hold the second back."""
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def addressee_topic(message: MQTTMessage) -> str:
    """The topic of a message, readable even when it is not UTF-8, where paho's own property raises."""
    return bytes(message._topic).decode(errors="replace")[:512]  # noqa: SLF001 - as said


def addressee(topic: str, payload: bytes) -> tuple[str, str]:
    """The device and the event id of a message that could not be used, as far as they can be read; "" otherwise."""
    try:
        parsed = topics.parse(topic)
        values = json.loads(payload)
    except (WireError, ValueError, RecursionError):
        return "", ""
    event = values.get("id") if isinstance(values, dict) else None
    if not isinstance(parsed, DeviceTopic) or not isinstance(event, str) or not re.fullmatch(EVENT_ID_PATTERN, event):
        return "", ""
    return parsed.device, event

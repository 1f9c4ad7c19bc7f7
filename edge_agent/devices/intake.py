"""Messages of devices into the ledger: what is usable becomes work for the writer, the rest a dead letter.

After each commit every device also gets a receipt with the event ids that are now durable, because an MQTT
acknowledgement from a broker in between only proves that the broker has the message in its memory.

Invariant: a message is acknowledged after it is in the ledger or in the dead letters, and not before.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future
from typing import Final, NamedTuple, Protocol

import structlog

from edge_agent.devices.dead_letters import redraft
from edge_agent.devices.mqtt import Delivery, Received
from edge_agent.devices.notices import Notices, Publisher
from edge_agent.errors import BadInput, EdgeError, EventIdUsed, UnknownDevice
from edge_agent.ledger.clock import Clock, instant
from edge_agent.ledger.drafts import LATE_MS_MAX
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from edge_agent.ledger.writer import Append, Job, LedgerWriter
from edge_agent.provisioning import firmware
from edge_agent.signals import Signals
from wire_protocol import topics
from wire_protocol.errors import WireError
from wire_protocol.firmware import FirmwareRequest
from wire_protocol.messages import DeviceReceipt, DeviceStatus, Refusal
from wire_protocol.names import EVENT_ID_PATTERN
from wire_protocol.reasons import RefusalCode
from wire_protocol.topics import Channel, DeviceTopic

RECEIPT_IDS_MAX: Final = 500
DEAD_LETTER_BYTES_MAX: Final = 64 * 1024
SUBSCRIPTIONS: Final = tuple(
    (topics.device_filter(channel), topics.RULES[channel].qos)
    for channel in (
        Channel.DEVICE_EVENT,
        Channel.DEVICE_READING,
        Channel.DEVICE_STATUS,
        Channel.DEVICE_FIRMWARE_REQUEST,
    )
)

log = structlog.get_logger("edge_agent.devices.intake")


class Broker(Publisher, Protocol):
    """What the intake needs of the gateway's broker."""

    def acknowledge(self, delivery: Delivery) -> None:
        """As `devices.mqtt.DeviceBroker`."""


class Token(NamedTuple):
    """What is owed to the broker and the device once a message is durable."""

    delivery: Delivery
    device: str = ""
    event: str = ""
    message: Received | None = None


class Intake:
    """Takes the messages of devices.

    Args:
        writer: the ledger's writer.
        known: the devices that may speak here.
        broker: where acknowledgements go.
        notices: tells devices.
        signals: what is sent from here.
        clock: the gateway's.
        late_ms_max: the age up to which a device is believed.
    """

    def __init__(
        self,
        writer: LedgerWriter,
        known: Container[str],
        broker: Broker,
        notices: Notices,
        signals: Signals,
        *,
        clock: Clock,
        late_ms_max: int = LATE_MS_MAX,
    ) -> None:
        self._clock, self._late_ms_max = clock, late_ms_max
        self._writer, self._known, self._broker, self._notices, self._signals = writer, known, broker, notices, signals

    def receive(self, message: Received) -> None:
        """Turn a message into work for the writer; waits while its queue is full, which holds the broker back."""
        try:
            self._take(message)
        except (WireError, BadInput, UnknownDevice) as error:
            self._dead_letter(message, str(error))
        except Exception as error:
            # A defect of ours; an exception here would end the client's thread, and the gateway would be deaf.
            log.exception("message_not_understood", topic=message.topic)
            self._dead_letter(message, f"internal error: {type(error).__name__}")

    def committed(self, appended: Sequence[Append]) -> None:
        """Acknowledge committed messages and give their devices a receipt; in the writer's thread."""
        events: dict[str, list[str]] = defaultdict(list)
        for append in appended:
            token: Token = append.token
            self._broker.acknowledge(token.delivery)
            events[token.device].append(token.event)
        for device, ids in events.items():
            for start in range(0, len(ids), RECEIPT_IDS_MAX):
                self._notices.receipt(device, DeviceReceipt(committed=tuple(ids[start : start + RECEIPT_IDS_MAX])))

    def _take(self, message: Received) -> None:
        topic = topics.parse(message.topic)
        if not isinstance(topic, DeviceTopic):
            raise BadInput("this topic is not for devices")
        if message.retained and not topics.RULES[topic.channel].retain:
            # The broker gives it to us at each contact. It was taken, or kept as a dead letter, when it was published.
            self._broker.acknowledge(message.delivery)
            return
        if topic.device not in self._known:
            raise UnknownDevice(
                RefusalCode.UNKNOWN_DEVICE.says(f"device {topic.device} is not registered at this gateway")
            )
        if topic.channel is Channel.DEVICE_STATUS:
            self._note_status(topic.device, DeviceStatus.decode(message.payload), message.delivery)
        elif topic.channel is Channel.DEVICE_FIRMWARE_REQUEST:
            self._signals.firmware_requested.send(topic.device, FirmwareRequest.decode(message.payload))
        else:
            draft = redraft(message.topic, message.payload, instant(self._clock), self._late_ms_max)
            self._writer.append(draft, Token(message.delivery, topic.device, draft.event or "", message))

    def _note_status(self, device: str, status: DeviceStatus, delivery: Delivery) -> None:
        def note(ledger: Ledger) -> None:
            ledger.connection.execute(statement("device_status"), (status.state, ledger.clock.now_ms(), device))
            if status.config_version is not None:
                answer = (status.config_version, status.config_problem, device)
                ledger.connection.execute(statement("confirm_config"), answer)
            if status.model is not None:
                firmware.note(ledger, device, status)

        done = self._settle_after(note, Token(delivery), refused=None)
        if status.config_version is not None or status.model is not None:
            done.add_done_callback(lambda _: self._signals.device_reported.send())
        if status.model is not None:
            # It may have said for the first time what it is.
            done.add_done_callback(lambda _: self._signals.model_reported.send(device))

    def refuse(self, append: Append, error: Exception) -> Job | None:
        """What is written instead of an event that the ledger cannot take: a dead letter; in the writer's thread.

        The device is answered with a refusal that says why, as for any other message that cannot be used.
        """
        token: Token = append.token
        if token.message is None:
            return None
        reason = str(error) if isinstance(error, EdgeError) else f"internal error: {type(error).__name__}"
        keep = self._keeping(token.message, reason)
        job = Job(_counting(keep) if isinstance(error, EventIdUsed) else keep, held=True)
        job.future.add_done_callback(self._settling(token, refused=reason))
        return job

    def _dead_letter(self, message: Received, reason: str) -> None:
        """Keep the message with its reason, then acknowledge it: the stream goes on."""
        token = Token(message.delivery, *addressee(message.topic, message.payload))
        self._settle_after(self._keeping(message, reason), token, refused=reason)

    def _keeping(self, message: Received, reason: str) -> Callable[[Ledger], None]:
        """The write that keeps a message as a dead letter."""
        at, payload = instant(self._clock), message.payload[:DEAD_LETTER_BYTES_MAX]
        log.warning("message_dead_lettered", topic=message.topic, reason=reason)

        def keep(ledger: Ledger) -> None:
            row = (at.wall_ms, message.topic, payload, reason, at.boot, at.mono_ms)
            ledger.connection.execute(statement("insert_dead_letter"), row)

        return keep

    def _settle_after(self, write: Callable[[Ledger], None], token: Token, *, refused: str | None) -> "Future[None]":
        """Acknowledge a message once `write` is committed; when it fails, the broker delivers the message again."""
        future = self._writer.settle(write)
        future.add_done_callback(self._settling(token, refused=refused))
        return future

    def _settling(self, token: Token, *, refused: str | None) -> "Callable[[Future[None]], None]":
        def settle(done: Future[None]) -> None:
            if done.exception() is not None:
                return
            self._broker.acknowledge(token.delivery)
            if refused is not None and token.event:
                refusal = Refusal(id=token.event, reason=refused[:200])
                self._notices.receipt(token.device, DeviceReceipt(refused=(refusal,)))

        return settle


def _counting(keep: Callable[[Ledger], None]) -> Callable[[Ledger], None]:
    """The write that also counts an id which a device used for two events."""

    def count(ledger: Ledger) -> None:
        keep(ledger)
        ledger.connection.execute(statement("count_up"), ("event_ids_used_twice", 1))

    return count


def addressee(topic: str, payload: bytes) -> tuple[str, str]:
    """The device and the event id of a message that could not be used, as far as they can be read; "" otherwise."""
    try:
        parsed = topics.parse(topic)
        values = json.loads(payload, object_pairs_hook=tuple)
    except (WireError, ValueError, RecursionError):
        return "", ""
    # Of two ids nobody knows which is meant, and a refusal makes the device forget that event.
    said = [value for name, value in values if name == "id"] if isinstance(values, tuple) else []
    if not isinstance(parsed, DeviceTopic) or len(said) != 1 or not isinstance(event := said[0], str):
        return "", ""
    return (parsed.device, event) if re.fullmatch(EVENT_ID_PATTERN, event) else ("", "")

"""A device for tests: keeps every event until its receipt, and sends it again after a reconnect."""

import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from wire_protocol import topics
from wire_protocol.messages import DeviceEvent, DeviceReceipt
from wire_protocol.topics import Channel


@dataclass
class Scanner:
    """One device on a gateway's broker."""

    port: int
    name: str
    pending: dict[str, bytes] = field(default_factory=dict)
    committed: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    _client: Client | None = None

    def __enter__(self) -> Self:
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=self.name, protocol=MQTTProtocolVersion.MQTTv5)
        ready = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe(
            topics.device(self.name, Channel.DEVICE_RECEIPT), qos=0
        )
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = self._on_receipt
        self._client.reconnect_delay_set(1, 1)
        self._client.max_queued_messages_set(0)
        self._client.connect("127.0.0.1", self.port)
        self._client.loop_start()
        assert ready.wait(60)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._client is not None
        self._client.disconnect()
        self._client.loop_stop()

    def scan(self, event_id: str, *, quantity: int = 1, sku: str = "tea") -> None:
        """Receive goods at A-01."""
        self.report(DeviceEvent(id=event_id, kind="receive", sku=sku, quantity=quantity, destination="A-01"))

    def report(self, event: DeviceEvent) -> None:
        """Report a movement or a count, and keep it until its receipt."""
        with self.changed:
            self.pending[event.id] = event.encode()
        self.say(event.encode())

    def say(self, payload: bytes, channel: Channel = Channel.DEVICE_EVENT, *, retain: bool = False) -> None:
        """Publish whatever, at QoS 1."""
        assert self._client is not None
        self._client.publish(topics.device(self.name, channel), payload, qos=1, retain=retain)

    def resend(self) -> None:
        """As firmware does after a reboot: everything without a receipt, again."""
        with self.changed:
            payloads = list(self.pending.values())
        for payload in payloads:
            self.say(payload)

    def has_receipts(self, count: int) -> bool:
        """Whether `count` events have a receipt; as firmware, it sends again what has none after a silence."""
        if self.wait_for_receipts(count, timeout_s=1):
            return True
        self.resend()
        return False

    def wait_for_receipts(self, count: int, timeout_s: float = 60) -> bool:
        """Whether `count` events got a receipt in time."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.committed) + len(self.refused) >= count, timeout_s)

    def _on_receipt(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        receipt = DeviceReceipt.decode(bytes(message.payload))
        with self.changed:
            self.committed.update(receipt.committed)
            self.refused.update({refusal.id: refusal.reason for refusal in receipt.refused})
            for event_id in (*receipt.committed, *self.refused):
                self.pending.pop(event_id, None)
            self.changed.notify_all()

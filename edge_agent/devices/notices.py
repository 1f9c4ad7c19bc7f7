"""What the agent sends to devices: receipts, configuration, firmware, and to show where they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_agent.provisioning.twin import Configured
from wire_protocol import topics
from wire_protocol.messages import DeviceCommand, DeviceReceipt
from wire_protocol.topics import RULES, Channel


class Publisher(Protocol):
    """Where messages to devices go; publishing waits for nothing."""

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        """As `devices.mqtt.DeviceBroker`."""

    def payload_bytes_max(self, topic: str) -> int:
        """As `devices.mqtt.DeviceBroker`."""


@dataclass(slots=True)
class Notices:
    """Tells devices; callable in any thread."""

    broker: Publisher

    def receipt(self, device: str, receipt: DeviceReceipt) -> None:
        """These events are durable, or refused; a receipt that is lost is sent again when the device repeats itself.

        One that is larger than the broker takes goes out in pieces.
        """
        payload, number = receipt.encode(), len(receipt.committed) + len(receipt.refused)
        if number > 1 and len(payload) > self.broker.payload_bytes_max(topics.device(device, Channel.DEVICE_RECEIPT)):
            for part in _halves(receipt):
                self.receipt(device, part)
            return
        self._send(device, Channel.DEVICE_RECEIPT, payload)

    def configure(self, configs: Sequence[Configured]) -> None:
        """Tell devices what they are to be; kept by the broker for those that are not there now."""
        for device, payload in configs:
            self._send(device, Channel.DEVICE_CONFIG, payload)

    def offer(self, offers: Sequence[Configured]) -> None:
        """Tell devices which firmware they are to run; kept by the broker for those that are not there now."""
        for device, payload in offers:
            self._send(device, Channel.DEVICE_FIRMWARE, payload)

    def chunk(self, device: str, payload: bytes) -> None:
        """Give a device a piece of an image; one that is lost is requested again."""
        self._send(device, Channel.DEVICE_FIRMWARE_CHUNK, payload)

    def locate(self, device: str, seconds: int) -> None:
        """Let a device blink and beep."""
        self._send(device, Channel.DEVICE_COMMAND, DeviceCommand(seconds=seconds).encode())

    def _send(self, device: str, channel: Channel, payload: bytes) -> None:
        rule = RULES[channel]
        self.broker.publish(topics.device(device, channel), payload, qos=rule.qos, retain=rule.retain)


def _halves(receipt: DeviceReceipt) -> Iterator[DeviceReceipt]:
    """The same events in two receipts, or in one of each kind."""
    committed, refused = receipt.committed, receipt.refused
    if committed and refused:
        yield DeviceReceipt(committed=committed)
        yield DeviceReceipt(refused=refused)
        return
    half = (len(committed) + len(refused)) // 2
    for part in (slice(half), slice(half, None)):
        yield DeviceReceipt(committed=committed[part], refused=refused[part])

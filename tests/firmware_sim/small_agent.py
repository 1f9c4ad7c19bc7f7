"""A small agent for tests: keeps what devices say, once, and sends receipts; it may lose some, and be restarted.

`seen` outlives its restarts, as a ledger does.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from mqtt_client import Connection, ConnectionOptions, connect
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.messages import DeviceEvent, DeviceReading, DeviceReceipt, DeviceStatus, Refusal
from wire_protocol.topics import Channel, DeviceTopic

CHANNELS = (Channel.DEVICE_EVENT, Channel.DEVICE_READING, Channel.DEVICE_STATUS)


@dataclass
class SmallAgent:
    """Listens on a broker, for the devices of one test.

    `loses` decides which receipts are never sent: it is given the device, the event id and how often it has come.
    """

    port: int
    loses: Callable[[str, str, int], bool] = lambda _device, _id, _times: False
    refuses: Callable[[str], str | None] = lambda _device: None
    events: dict[tuple[str, str], DeviceEvent] = field(default_factory=dict)
    readings: dict[tuple[str, str], DeviceReading] = field(default_factory=dict)
    times: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: list[tuple[str, str]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """One life of the agent."""
        options = ConnectionOptions(address=BrokerAddress("127.0.0.1", self.port), client_id="", incoming_max=0)
        async with connect(options) as connection, asyncio.TaskGroup() as tasks:
            await connection.subscribe([(topics.device_filter(channel), 1) for channel in CHANNELS])
            serving = tasks.create_task(self._serve(connection), name="small-agent")
            yield
            serving.cancel()

    async def has(self, condition: Callable[[], bool]) -> None:
        """Wait for a fact about what was heard."""
        async with self.changed, asyncio.timeout(60):
            await self.changed.wait_for(condition)

    async def _serve(self, connection: Connection) -> None:
        async for message in connection.messages():
            topic = topics.parse(message.topic)
            assert isinstance(topic, DeviceTopic)
            receipt = self._take(topic, message.payload)
            if receipt is not None:
                to = topics.device(topic.device, Channel.DEVICE_RECEIPT)
                await connection.publish(to, receipt.encode(), qos=0)
            async with self.changed:
                self.changed.notify_all()

    def _take(self, topic: DeviceTopic, payload: bytes) -> DeviceReceipt | None:
        if topic.channel is Channel.DEVICE_STATUS:
            self.statuses.append((topic.device, DeviceStatus.decode(payload).state))
            return None
        if topic.channel is Channel.DEVICE_EVENT:
            event = DeviceEvent.decode(payload)
            key = (topic.device, event.id)
            self.events.setdefault(key, event)
        else:
            reading = DeviceReading.decode(payload)
            key = (topic.device, reading.id)
            self.readings.setdefault(key, reading)
        self.order.append(key[1])
        self.times[key] += 1
        if reason := self.refuses(topic.device):
            del self.events[key]
            return DeviceReceipt(refused=(Refusal(id=key[1], reason=reason),))
        if self.loses(*key, self.times[key]):
            return None
        return DeviceReceipt(committed=(key[1],))

"""One device's connection to its gateway's broker.

All decisions are the unit's (`firmware.py`, `faults.py`); this module connects, publishes what the unit says, hands
it its receipts, and connects again with jitter.

Invariant: nothing is published before the receipts are subscribed to, and after each reconnect the unit says again
whatever has no receipt.
"""

import asyncio
import random
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, Literal, TypeAlias

from firmware_sim.errors import MemoryFull
from firmware_sim.firmware.event_queue import Outgoing
from firmware_sim.firmware.happening import Happening
from firmware_sim.fleet.device import SimulatedDevice
from firmware_sim.fleet.pace import Pace
from firmware_sim.fleet.updates import UpdateLink
from mqtt_client import (
    Backoff,
    Connection,
    ConnectionLost,
    ConnectionOptions,
    LastWill,
    client_context,
    connect,
    in_a_task,
)
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.messages import DeviceCommand, DeviceReceipt, DeviceStatus, InvalidMessage
from wire_protocol.topics import RULES, Channel
from wire_protocol.twin import DeviceConfig

MqttVersion: TypeAlias = Literal["5", "3.1.1"]

FIRMWARE: Final = "stocktide-sim"
DEVICE: Final = "{device}"  # as the user of a broker's address: each device connects under its own name
INFLIGHT_MESSAGES_MAX: Final = 10
INCOMING_MESSAGES_MAX: Final = 1_000  # more receipts than that are lost, and the events sent again
CONNECT_S_MAX: Final = 10.0
KEEPALIVE_S: Final = 30
RECONNECT_S: Final = 0.25
RECONNECT_S_MAX: Final = 10.0


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How devices connect."""

    mqtt_version: MqttVersion = "5"
    reconnect_s_max: float = RECONNECT_S_MAX
    keepalive_s: int = KEEPALIVE_S


class Link:
    """A unit and its connection: happenings are offered to it, `run` tells the broker until all have a receipt."""

    def __init__(
        self,
        gateway: str,
        address: BrokerAddress,
        unit: SimulatedDevice,
        *,
        pace: Pace,
        options: LinkOptions,
        rng: random.Random,
        start_ms: int = 0,
    ) -> None:
        self.gateway, self.unit = gateway, unit
        self.online = False
        self.problem: str | None = None
        self._address, self._pace, self._options, self._rng = address, pace, options, rng
        self._update = UpdateLink(unit)
        unit.firmware.speed = pace.speed
        self._horizon_ms = start_ms  # at `max` speed: how far this device's own time has come
        self._hurried = False  # at `max` speed: nothing will happen before something is said, so time jumps
        self._ended = False
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def name(self) -> str:
        return self.unit.name

    @property
    def is_done(self) -> bool:
        """Whether nothing more will happen and everything has its receipt."""
        return self._ended and self.unit.is_idle

    @property
    def is_stuck(self) -> bool:
        """Whether it waits for receipts and no scenario is the reason."""
        if not self.unit.firmware.waiting or self._pace.is_max:
            return self.unit.firmware.waiting > 0
        now_ms = self._now_ms()
        on_its_way_ms = self.unit.radio.next_ms()
        return not self.unit.is_cut_off(now_ms) and (on_its_way_ms is None or on_its_way_ms <= now_ms)

    async def offer(self, happening: Happening) -> str | None:
        """Let something happen at the device; waits while its memory is full.

        Returns:
            Its event id; None for a reading that was dropped.
        """
        self._horizon_ms = max(self._horizon_ms, happening.at_ms)
        while True:
            try:
                event_id = self.unit.firmware.scan(happening)
            except MemoryFull:
                await self._change()
                continue
            self._wake.set()
            return event_id

    async def settled(self) -> None:
        """Wait until everything so far has its receipt."""
        while self.unit.firmware.waiting:
            await self._change()

    def end(self) -> None:
        """Nothing more will happen."""
        self._ended = self._hurried = True
        self._wake.set()

    async def run(self) -> None:
        """Connect, publish, reconnect, until all is done."""
        # Full jitter, as the gateways do, so that a shop's devices do not come back in step.
        backoff = Backoff(RECONNECT_S, self._options.reconnect_s_max, self._rng.uniform)
        while not self.is_done:
            if await self._is_away():
                continue
            self._update.booted(self._pace.link_ms())
            try:
                await in_a_task(self._connection(), f"sim[{self.gateway}].device[{self.name}].connection")
            except* ConnectionLost as errors:
                self.problem = _first_line(errors)
            finally:
                if self.online:
                    backoff.reset()
                self.online = False
            if self.problem is not None:
                await asyncio.sleep(backoff.next_s())

    async def _connection(self) -> None:
        """One connection, from CONNECT to its end."""
        async with connect(self._connect_options()) as connection:
            await connection.subscribe(topics.device(self.name, Channel.DEVICE_RECEIPT), qos=0)
            for channel in (Channel.DEVICE_CONFIG, Channel.DEVICE_COMMAND, *self._update.channels):
                await connection.subscribe(topics.device(self.name, channel), qos=RULES[channel].qos)
            self.problem, self.online = None, True
            self.unit.firmware.reconnected()
            self._update.reached(self._pace.link_ms())
            await self._contact(connection)
            await self._say(connection, "offline")

    async def _change(self) -> None:
        """Wait for a receipt; at `max` speed, time jumps to what the device waits for."""
        self._hurried = True
        self._wake.set()
        self._changed.clear()
        await self._changed.wait()
        self._hurried = self._ended

    def _now_ms(self) -> int:
        return self._horizon_ms if self._pace.is_max else self._pace.now_ms()

    def _connect_options(self) -> ConnectionOptions:
        status = topics.device(self.name, Channel.DEVICE_STATUS)
        address = self._address
        return ConnectionOptions(
            address=replace(address, user=address.user and address.user.replace(DEVICE, self.name)),
            client_id=f"stocktide-device-{self.name}",
            mqtt_5=self._options.mqtt_version == "5",
            keepalive_s=self._options.keepalive_s,
            timeout_s=CONNECT_S_MAX,
            tls=client_context(address, None),
            will=LastWill(status, DeviceStatus(state="offline").encode()),
            incoming_max=INCOMING_MESSAGES_MAX,
        )

    async def _contact(self, connection: Connection) -> None:
        """One contact: until all is done, the scenario takes the device away, or the link breaks."""
        await self._say(connection, "online")
        async with asyncio.TaskGroup() as tasks:
            name = f"sim[{self.gateway}].device[{self.name}]"
            receiving = tasks.create_task(self._receive(connection), name=f"{name}.receive")
            await self._pump(connection)
            receiving.cancel()

    async def _say(self, connection: Connection, state: Literal["online", "offline"]) -> None:
        at_ms = self.unit.firmware.clock.reads(self._now_ms())
        firmware = self.unit.firmware
        answers = firmware.config is not None or firmware.config_problem is not None
        status = DeviceStatus(
            state=state,
            firmware=self._update.version or FIRMWARE,
            model=self._update.model,
            update=self._update.status(),
            config_version=firmware.config_version if answers else None,
            config_problem=firmware.config_problem,
            at_ms=at_ms,
        )
        topic = topics.device(self.name, Channel.DEVICE_STATUS)
        await connection.publish(topic, status.encode(), retain=True)

    async def _receive(self, connection: Connection) -> None:
        async for message in connection.messages():
            topic = topics.parse(message.topic)
            try:
                if topic.channel is Channel.DEVICE_CONFIG:
                    await self._configure(connection, message.payload)
                elif topic.channel in self._update.channels:
                    self._update.take(topic.channel, message.payload, self._pace.link_ms())
                elif topic.channel is Channel.DEVICE_COMMAND:
                    self.unit.firmware.blink(DeviceCommand.decode(message.payload).seconds, self._pace.link_ms())
                else:
                    self.unit.firmware.receive(DeviceReceipt.decode(message.payload))
            except InvalidMessage:
                self.unit.firmware.counters.receipts_unreadable += 1
                continue
            self._changed.set()
            self._wake.set()

    async def _configure(self, connection: Connection, payload: bytes) -> None:
        if payload:  # an empty one takes a configuration back: it goes on with what it has
            self.unit.firmware.configure(DeviceConfig.decode(payload))
            await self._say(connection, "online")

    async def _pump(self, connection: Connection) -> None:
        while not self.is_done:
            self._wake.clear()
            now_ms = self._now_ms()
            messages = iter(self.unit.poll(now_ms, self._pace.link_ms()))
            if self.unit.firmware.back_ms(now_ms) is not None or self._update.restart_wanted(self._pace.link_ms()):
                return
            if (ask := self._update.ask(self._pace.link_ms())) is not None:
                await self._publish(connection, [Outgoing(now_ms, Channel.DEVICE_FIRMWARE_REQUEST, ask.encode())])
            if self._update.news():
                await self._say(connection, "online")
            while batch := list(islice(messages, INFLIGHT_MESSAGES_MAX)):
                await self._publish(connection, batch)
            next_ms = self.unit.next_ms(now_ms)
            if not self._jump(next_ms):
                due = (self.unit.firmware.next_link_ms(), self._update.next_ms())
                await self._sleep(next_ms, min((at_ms for at_ms in due if at_ms is not None), default=None))

    async def _publish(self, connection: Connection, batch: list[Outgoing]) -> None:
        # A task each, because a round trip each in turn is slow; asyncio starts them in order.
        async with asyncio.TaskGroup() as tasks:
            for message in batch:
                topic, qos = topics.device(self.name, message.channel), RULES[message.channel].qos
                publish = connection.publish(topic, message.payload, qos)
                tasks.create_task(publish, name=f"sim[{self.gateway}].device[{self.name}].publish")

    async def _is_away(self) -> bool:
        """Wait for a moment, if the scenario keeps the device offline or rebooting now."""
        self._wake.clear()
        back_ms = self.unit.firmware.back_ms(self._now_ms())
        if back_ms is None:
            return False
        if not self._jump(back_ms):
            await self._sleep(back_ms, None)
        return True

    def _jump(self, next_ms: int | None) -> bool:
        """At `max` speed, when the device waits for nothing but time: let it pass."""
        if not (self._pace.is_max and self._hurried) or next_ms is None or next_ms <= self._horizon_ms or self.is_done:
            return False
        self._horizon_ms = next_ms
        return True

    async def _sleep(self, next_ms: int | None, link_ms: int | None) -> None:
        """Until something happens, a receipt comes, or something is due by either clock."""
        delays_s = []
        if link_ms is not None:
            delays_s.append(max(0.0, (link_ms - self._pace.link_ms()) / 1_000))
        if next_ms is not None and not self._pace.is_max:
            delays_s.append(self._pace.wait_s(next_ms))
        try:
            async with asyncio.timeout(min(delays_s, default=None)):
                await self._wake.wait()
        except TimeoutError:
            return


def _first_line(errors: BaseExceptionGroup[Any]) -> str:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return (str(error) or type(error).__name__).splitlines()[0]

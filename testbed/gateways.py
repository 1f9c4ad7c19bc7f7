"""Gateways as a source of load: the production sender over sealed frames that were made beforehand.

Used by the benchmarks and by the fault tests: what is measured and broken is the cloud's side, so the gateway's side is
the real protocol (`wire_protocol.replication.Sender`) without a ledger behind it. All gateways of a fleet share one
connection; one that comes with a certificate is a fleet by itself.

Invariant: a frame is forgotten only when it is acknowledged; a broken link is re-established forever.
"""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self

from mqtt_client import Backoff, Connection, ConnectionOptions, connect, stay_connected
from wire_protocol import names, topics
from wire_protocol.address import BrokerAddress
from wire_protocol.effects import Acked, Forked, Send
from wire_protocol.messages import Ack, GatewayStatus, InvalidMessage
from wire_protocol.replication import Sender, SenderLimits
from wire_protocol.topics import Channel, Stream

RECONNECT_DELAY_S: Final = 0.05
PUBLISHES_AT_ONCE: Final = 64
ACK_FILTER: Final = f"{topics.ROOT}/+/+/{Channel.ACK}"


class LoadGateway:
    """One stream of one gateway: its frames, and the sender that ships them."""

    def __init__(
        self,
        name: str,
        epoch: str,
        frames: Sequence[bytes],
        stream: Stream = "ledger",
        limits: SenderLimits | None = None,
    ) -> None:
        self.name, self.epoch, self.stream = name, epoch, stream
        self.frames = list(frames)
        self.forked: str | None = None
        self.acks: list[Ack] = []
        self.sends = 0
        self.sender = Sender(
            stream,
            epoch,
            sealed=len(self.frames),
            acked=0,
            limits=limits,
            jitter=lambda: random.uniform(0.8, 1.2),
        )

    def add(self, frame: bytes, now_ms: int) -> list[object]:
        """Append a sealed frame while running. Returns effects to carry out."""
        self.frames.append(frame)
        return list(self.sender.sealed(len(self.frames), 0, now_ms))

    @property
    def done(self) -> bool:
        """Whether every frame is acknowledged."""
        return self.sender.acked_frame == len(self.frames)


class Fleet:
    """Gateways on one connection. `async with` it, then wait for `settled`.

    Args:
        mqtt_url: the broker.
        gateways: who is to be connected.
        mqtt_version: 5 or 3.1.1.
        tls: of a lone gateway that shows a certificate; a lone one subscribes to its own topic only.
    """

    def __init__(
        self,
        mqtt_url: str,
        gateways: Iterable[LoadGateway],
        *,
        mqtt_version: str = "5",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._options = ConnectionOptions(
            address=BrokerAddress.parse(mqtt_url),
            client_id="",
            mqtt_5=mqtt_version == "5",
            tls=tls,
            incoming_max=0,
            inflight_max=1000,
            calls_max=PUBLISHES_AT_ONCE,
        )
        self.gateways = {(gateway.name, gateway.stream): gateway for gateway in gateways}
        names = {name for name, _ in self.gateways}
        self._filter = topics.link(names.pop(), Channel.ACK) if len(names) == 1 else ACK_FILTER
        self._outgoing: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._tasks: asyncio.TaskGroup | None = None
        self._running: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self.announced = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._running = [
            self._tasks.create_task(self._stay_connected(), name="fleet.link"),
            self._tasks.create_task(self._tick(), name="fleet.clock"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        if self._tasks is not None:
            await self._tasks.__aexit__(kind, error, trace)

    async def settled(self, timeout_s: float) -> None:
        """Wait until every frame of every gateway is acknowledged."""
        await self.until(lambda: all(gateway.done for gateway in self.gateways.values()), timeout_s)

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait until a condition on the gateways holds; looked at whenever an acknowledgement arrives."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    @property
    def frames_acked(self) -> int:
        """How many frames are acknowledged, over all gateways."""
        return sum(gateway.sender.acked_frame for gateway in self.gateways.values())

    def add(self, name: str, frame: bytes, stream: Stream = "ledger") -> None:
        """Seal one more frame of a gateway."""
        gateway = self.gateways[name, stream]
        self._execute(gateway, gateway.add(frame, _now_ms()))

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish anything at all, as a hostile or broken gateway would."""
        self._outgoing.put_nowait((topic, payload))

    async def _stay_connected(self) -> None:
        backoff = Backoff(RECONNECT_DELAY_S, RECONNECT_DELAY_S)
        await stay_connected(self._contact, lambda _: None, backoff, "fleet.contact")

    async def _contact(self) -> None:
        try:
            async with connect(self._options) as connection, asyncio.TaskGroup() as group:
                await connection.subscribe(self._filter)
                for number in range(PUBLISHES_AT_ONCE):
                    group.create_task(self._publish(connection), name=f"fleet.publisher.{number}")
                for gateway in self.gateways.values():
                    self._announce(gateway)
                    self._execute(gateway, gateway.sender.connected(_now_ms()))
                self.announced.set()
                async for message in connection.messages():
                    self._receive(message.topic, message.payload)
        finally:
            for gateway in self.gateways.values():
                gateway.sender.disconnected()
            self._outgoing = asyncio.Queue()

    async def _publish(self, connection: Connection) -> None:
        while True:
            topic, payload = await self._outgoing.get()
            await connection.publish(topic, payload)

    async def _tick(self) -> None:
        while True:
            now_ms = _now_ms()
            for gateway in self.gateways.values():
                self._execute(gateway, gateway.sender.tick(now_ms))
            await asyncio.sleep(0.1)

    def _announce(self, gateway: LoadGateway) -> None:
        # Not retained, unlike a real gateway's: it would stay on a shared broker after the test.
        status = GatewayStatus(state="online", epoch=gateway.epoch, version="load", at_ms=_now_ms())
        self._outgoing.put_nowait((topics.link(gateway.name, Channel.STATUS), status.encode()))

    def _receive(self, topic: str, payload: bytes) -> None:
        name = topics.parse(topic).gateway  # type: ignore[union-attr]  # the filter admits link topics only
        try:
            ack = Ack.decode(payload)
        except InvalidMessage:
            return  # as the agent does: an acknowledgement that cannot be read says nothing
        gateway = self.gateways.get((name, ack.stream))
        if gateway is not None:
            gateway.acks.append(ack)
            self._execute(gateway, gateway.sender.receive(ack, _now_ms()))
            self._changed.set()

    def _execute(self, gateway: LoadGateway, effects: Iterable[object]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                gateway.sends += 1
                self._outgoing.put_nowait((topics.up(gateway.name, gateway.stream), gateway.frames[effect.frame - 1]))
            elif isinstance(effect, Forked):
                gateway.forked = effect.reason
            else:
                assert isinstance(effect, Acked), f"a load gateway never seals: {effect}"


def epoch(number: int = 1) -> str:
    """An epoch for a load gateway."""
    return names.ulid(1_790_000_000_000, number.to_bytes(10))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

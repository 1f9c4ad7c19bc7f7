"""A broker of a few dozen lines that a test can script: it answers, refuses, stays silent or hangs up at any packet."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

CONNECT, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, PING, DISCONNECT = 1, 3, 8, 10, 12, 14
NAMES: Final = {
    CONNECT: "connect",
    PUBLISH: "publish",
    SUBSCRIBE: "subscribe",
    UNSUBSCRIBE: "unsubscribe",
    PING: "ping",
    DISCONNECT: "disconnect",
}
# Called with the packet's name before its answer is sent and after it was; returns False to stay silent.
Hook = Callable[[str], Awaitable[bool]]


async def go_on(_stage: str) -> bool:
    """Answer everything."""
    return True


@dataclass
class ScriptedBroker:
    """`async with ScriptedBroker() as broker:` listens on `broker.port`."""

    hook: Hook = go_on
    mqtt_5: bool = True
    connack: int = 0
    suback: int = 1
    puback: int = 0
    seen: list[str] = field(default_factory=list)
    open: int = 0
    accepted: int = 0
    port: int = 0

    async def __aenter__(self) -> Self:
        self._writers: list[asyncio.StreamWriter] = []
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up()
        self._server.close()
        await self._server.wait_closed()

    def hang_up(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()

    def send(self, topic: bytes, payload: bytes) -> None:
        """Publish to every connection."""
        body = struct.pack("!H", len(topic)) + topic + (b"\0" if self.mqtt_5 else b"") + payload
        for writer in self._writers:
            writer.write(bytes([0x30, len(body)]) + body)

    def disconnect(self, reason: int) -> None:
        """End every connection with a reason (MQTT 5)."""
        for writer in self._writers:
            writer.write(bytes([0xE0, 1, reason]))
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.accepted += 1
        self._writers.append(writer)
        try:
            if await self.hook("accept"):
                while True:
                    await self._answer(writer, *await _packet(reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, kind: int, flags: int, body: bytes) -> None:
        name = NAMES[kind]
        self.seen.append(name)
        if not await self.hook(name):
            return
        if (answer := self._reply(kind, flags, body)) is not None:
            writer.write(answer)
            await writer.drain()
        await self.hook(f"{name} answered")

    def _reply(self, kind: int, flags: int, body: bytes) -> bytes | None:
        if kind == CONNECT:
            return bytes([0x20, 3, 0, self.connack, 0]) if self.mqtt_5 else bytes([0x20, 2, 0, self.connack])
        if kind == SUBSCRIBE:
            rest = (b"\0" if self.mqtt_5 else b"") + bytes([self.suback])
            return bytes([0x90, 2 + len(rest)]) + body[:2] + rest
        if kind == UNSUBSCRIBE:
            rest = b"\0\0" if self.mqtt_5 else b""
            return bytes([0xB0, 2 + len(rest)]) + body[:2] + rest
        if kind == PING:
            return bytes([0xD0, 0])
        if kind == PUBLISH and flags & 0x06:
            start = 2 + struct.unpack("!H", body[:2])[0]
            mid = body[start : start + 2]
            return bytes([0x40, 4]) + mid + bytes([self.puback, 0]) if self.mqtt_5 else bytes([0x40, 2]) + mid
        return None


async def _packet(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    (first,) = await reader.readexactly(1)
    size = shift = 0
    while True:
        (byte,) = await reader.readexactly(1)
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return first >> 4, first & 0x0F, await reader.readexactly(size)

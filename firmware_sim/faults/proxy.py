"""A TCP proxy that breaks a link on command: cut, half-open, slow. The demo, the tests and the benchmarks use it.

Bytes are forwarded as they are, so any protocol passes through, TLS included.

Invariant: the port stays reserved from entering to leaving the context, whatever is done to the link in between, and
no connection outlives the context. A stream never loses bytes in its middle: a connection that lost some is dropped.
"""

import asyncio
import socket
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

HOST: Final = "127.0.0.1"
CHUNK_BYTES_MAX: Final = 64 * 1024
CONNECT_S_MAX: Final = 5.0
CONNECTIONS_MAX: Final = 10_000


class LinkState(StrEnum):
    """The state of the link that the proxy stands for."""

    UP = "up"
    CUT = "cut"  # connections are dropped and new ones refused
    BLACKHOLE = "blackhole"  # connections are accepted and stay open, and nothing goes through


class FaultProxy:
    """`async with FaultProxy("127.0.0.1", 1883) as proxy:` forwards `proxy.port` on loopback to the target.

    `delay_s` holds back what is forwarded, in both directions, by one to two times its value; it may be changed at any
    time. `bytes_up` counts what clients sent to the target, `bytes_down` what it answered, `bytes_lost` what a black
    hole swallowed, `connections_total` the connections accepted.
    """

    def __init__(self, target_host: str, target_port: int, *, port: int = 0, delay_s: float = 0.0) -> None:
        self._target = (target_host, target_port)
        self._wanted_port = port
        self.delay_s = delay_s
        self.bytes_up = 0
        self.bytes_down = 0
        self.bytes_lost = 0
        self.connections_total = 0
        self._state = LinkState.CUT
        self._passable = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        # Bound but not listening: it keeps the port ours while the link is cut and connections are refused.
        self._reservation = _bound(self._wanted_port)
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self.heal()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        self._reservation.close()
        await self._tasks.__aexit__(kind, error, trace)

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that clients connect to."""
        return int(self._reservation.getsockname()[1])

    @property
    def state(self) -> LinkState:
        return self._state

    def cut(self) -> None:
        """Drop all connections and refuse new ones, as when a cable is pulled and both ends notice."""
        self._enter(LinkState.CUT)
        self._drop_all()
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def blackhole(self) -> None:
        """Swallow everything and tell nobody, as when a route vanishes: neither end learns that the other is gone."""
        self._enter(LinkState.BLACKHOLE)
        self._listen()

    def heal(self) -> None:
        """Let new connections through again. What was open in a black hole is dropped, since it has lost bytes."""
        if self._state is not LinkState.UP:
            self._drop_all()
        self._enter(LinkState.UP)
        self._listen()

    def _enter(self, state: LinkState) -> None:
        self._state = state
        if state is LinkState.UP:
            self._passable.set()
        else:
            self._passable.clear()

    def _drop_all(self) -> None:
        for connection in self._connections:
            connection.cancel()

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.listen()
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # the client has gone again
        if len(self._connections) >= CONNECTIONS_MAX:
            client.close()
            return
        client.setblocking(False)
        self.connections_total += 1
        name = f"proxy[{self.port}].connection[{self.connections_total}]"
        task = self._tasks.create_task(self._serve(client, name), name=name)
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        # A task that is cancelled before it has begun runs nothing, so the socket is closed here.
        task.add_done_callback(lambda _: client.close())

    async def _serve(self, client: socket.socket, name: str) -> None:
        writers: list[asyncio.StreamWriter] = []
        try:
            try:
                await self._forward(client, writers, name)
            except* (OSError, TimeoutError):
                pass  # an end has gone; so will the other
            # In a black hole an end does not learn that the other has closed, until heal() or cut() drops both.
            await self._passable.wait()
        finally:
            for writer in writers:
                writer.transport.abort()

    async def _forward(self, client: socket.socket, writers: list[asyncio.StreamWriter], name: str) -> None:
        from_client, to_client = await asyncio.open_connection(sock=client)
        writers.append(to_client)
        if self._state is LinkState.BLACKHOLE:
            while chunk := await from_client.read(CHUNK_BYTES_MAX):
                self.bytes_lost += len(chunk)
            return
        async with asyncio.timeout(CONNECT_S_MAX):
            from_target, to_target = await asyncio.open_connection(*self._target)
        writers.append(to_target)
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(self._pump(from_client, to_target, up=True), name=f"{name}.up")
            pumps.create_task(self._pump(from_target, to_client, up=False), name=f"{name}.down")

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
        while chunk := await source.read(CHUNK_BYTES_MAX):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self._state is LinkState.BLACKHOLE:
                self.bytes_lost += len(chunk)
                continue
            if up:
                self.bytes_up += len(chunk)
            else:
                self.bytes_down += len(chunk)
            sink.write(chunk)
            await sink.drain()
        await self._passable.wait()
        sink.write_eof()


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # On Linux this lets the listener share the port with the reservation, as long as only one of them listens.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setblocking(False)
    try:
        bound.bind((HOST, port))
    except OSError:
        bound.close()
        raise
    return bound

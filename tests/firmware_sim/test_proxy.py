"""The fault proxy against a real echo server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from firmware_sim.faults.proxy import HOST, FaultProxy, LinkState

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that answers with what it gets, and notes who is connected."""

    def __init__(self) -> None:
        self.open = 0
        self.changed = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._count(1)
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            await self._count(-1)

    async def has_open(self, number: int) -> None:
        async with self.changed, asyncio.timeout(60):
            await self.changed.wait_for(lambda: self.open == number)

    async def _count(self, step: int) -> None:
        async with self.changed:
            self.open += step
            self.changed.notify_all()


@asynccontextmanager
async def _echo_behind_proxy(*, delay_s: float = 0.0) -> AsyncIterator[tuple[Echo, FaultProxy]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, HOST, 0)
    target_port = server.sockets[0].getsockname()[1]
    async with server:
        async with FaultProxy(HOST, target_port, delay_s=delay_s) as proxy:
            yield echo, proxy
        await echo.has_open(0)


@asynccontextmanager
async def _connected(proxy: FaultProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _echoed(streams: Streams, text: bytes) -> bytes:
    reader, writer = streams
    writer.write(text)
    async with asyncio.timeout(60):
        return await reader.readexactly(len(text))


async def _is_dropped(streams: Streams) -> bool:
    async with asyncio.timeout(60):
        try:
            return await streams[0].read() == b""
        except ConnectionError:
            return True


async def test_bytes_go_both_ways_and_are_counted() -> None:
    """More than any buffer holds must come through whole, and the end of a stream too."""
    sent = bytes(range(256)) * 20_000
    async with _echo_behind_proxy() as (_, proxy), _connected(proxy) as (reader, writer):
        async with asyncio.TaskGroup() as both:
            received = both.create_task(reader.readexactly(len(sent)), name="test.read")
            writer.write(sent)
            await writer.drain()
        writer.write_eof()
        assert await reader.read() == b""
        assert received.result() == sent
        assert (proxy.bytes_up, proxy.bytes_down, proxy.bytes_lost) == (len(sent), len(sent), 0)


async def test_cut_drops_connections_and_refuses_new_ones_until_healed_on_the_same_port() -> None:
    """Agents reconnect to the address they were given; a port that changed or was taken would hang them."""
    async with _echo_behind_proxy() as (echo, proxy):
        port = proxy.port
        for _ in range(3):
            async with _connected(proxy) as streams:
                assert await _echoed(streams, b"scan") == b"scan"
                proxy.cut()
                assert await _is_dropped(streams)
            await echo.has_open(0)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(HOST, port)
            proxy.heal()
        assert proxy.port == port
        assert proxy.connections_total == 3


async def test_a_black_hole_swallows_and_tells_nobody() -> None:
    """A half-open link is the worst one: keepalives and ack timeouts are all that finds it."""
    async with _echo_behind_proxy() as (echo, proxy):
        async with _connected(proxy) as before, _connected(proxy) as gone:
            assert await _echoed(before, b"one") == b"one"
            assert await _echoed(gone, b"two") == b"two"
            proxy.blackhole()
            before[1].write(b"lost")
            gone[1].transport.abort()
            async with _connected(proxy) as during:
                during[1].write(b"lost too")
                for streams in (before, during):
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await streams[0].read(1)
                assert echo.open == 2  # it has not learned that one client has gone, nor that one has come
                proxy.heal()
                assert await _is_dropped(before)
                assert await _is_dropped(during)
        assert proxy.bytes_lost == len(b"lost" + b"lost too")
        async with _connected(proxy) as after:
            assert await _echoed(after, b"three") == b"three"


async def test_delay_holds_back_each_direction() -> None:
    """Windows and timeouts are tested over slow links."""
    async with _echo_behind_proxy(delay_s=0.05) as (_, proxy), _connected(proxy) as streams:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        assert await _echoed(streams, b"scan") == b"scan"
        assert loop.time() - begin >= 0.1
        proxy.delay_s = 0
        assert await _echoed(streams, b"scan") == b"scan"


async def test_a_dead_target_drops_the_client() -> None:
    """A broker that is down behind the proxy looks like one that is down."""
    async with _echo_behind_proxy() as (_, first):
        target_port = first.port
        first.cut()
        async with FaultProxy(HOST, target_port) as proxy, _connected(proxy) as streams:
            assert await _is_dropped(streams)


async def test_states_can_follow_each_other_in_any_order() -> None:
    """Fault schedules are drawn at random; no order of them may wedge the proxy."""
    async with _echo_behind_proxy() as (_, proxy):
        for step in (proxy.heal, proxy.cut, proxy.cut, proxy.blackhole, proxy.cut, proxy.heal, proxy.blackhole):
            step()
        assert proxy.state is LinkState.BLACKHOLE
        proxy.heal()
        async with _connected(proxy) as streams:
            assert await _echoed(streams, b"scan") == b"scan"

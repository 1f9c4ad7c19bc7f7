"""A host that accepts and says nothing: neither a time limit nor a request to stop may wait for a thread."""

import asyncio
import gc
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import aiomqtt
import pytest

from mqtt_client import Connection, ConnectionLost, ConnectionOptions, connect
from testbed.eventually import eventually_async
from tests.mqtt_client.scripted_broker import ScriptedBroker
from wire_protocol.address import BrokerAddress

LIMIT_S = 0.2


class SilentHost:
    """Accepts TCP and never answers; a TLS handshake with it does not end."""

    def __init__(self) -> None:
        self.accepted = asyncio.Event()
        self.open = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    def hang_up(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self._writers.append(writer)
        self.accepted.set()
        while await reader.read(4_096):
            pass
        self.open -= 1
        writer.close()


@pytest.fixture
async def silent() -> AsyncIterator[SilentHost]:
    """A silent host."""
    async with SilentHost() as host:
        yield host


def options(port: int, timeout_s: float, *, tls: bool) -> ConnectionOptions:
    """How a test connects."""
    context = ssl.create_default_context() if tls else None
    return ConnectionOptions(
        address=BrokerAddress("127.0.0.1", port), client_id="test", timeout_s=timeout_s, tls=context
    )


async def hold(chosen: ConnectionOptions) -> None:
    """Connect and wait."""
    async with connect(chosen):
        await asyncio.Event().wait()


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
async def test_the_time_limit_holds_though_the_thread_is_still_connecting(silent: SilentHost, *, tls: bool) -> None:
    """The library bounds the wait for CONNACK alone: a handshake kept an eviction waiting beyond its five seconds."""
    # The thread has the same limit for a handshake, and may be the first to say so.
    with pytest.raises(ConnectionLost, match=r"time limit|timed out"):
        await hold(options(silent.port, LIMIT_S, tls=tls))
    assert not [each for each in asyncio.all_tasks() if each.get_name().startswith("mqtt.")]
    await eventually_async(lambda: silent.open == 0, "its socket is closed when the thread is back")


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
async def test_a_cancellation_does_not_wait_for_the_thread(silent: SilentHost, *, tls: bool) -> None:
    """The limit is longer than the test: a process that is asked to stop has no task left at once."""
    task = asyncio.create_task(hold(options(silent.port, 300.0, tls=tls)))
    await silent.accepted.wait()
    task.cancel()
    await asyncio.wait([task], timeout=60)
    assert task.cancelled()
    assert not [each for each in asyncio.all_tasks() if each.get_name().startswith("mqtt.")]
    silent.hang_up()  # a handshake would go on for five seconds
    await eventually_async(lambda: silent.open == 0, "its socket is closed when the thread is back")


async def test_a_connect_that_comes_back_after_its_time_limit_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the broker has a client that nobody reads, under the name of the next attempt."""
    real, resolved = socket.create_connection, threading.Event()

    def late(*arguments: object, **named: object) -> socket.socket:
        resolved.wait(60)  # in the thread: name resolution that takes its time
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_connection", late)
    async with ScriptedBroker() as broker:
        with pytest.raises(ConnectionLost, match="time limit"):
            await hold(options(broker.port, LIMIT_S, tls=False))
        resolved.set()
        await eventually_async(lambda: broker.accepted == 1, "the thread has connected")
        await eventually_async(lambda: broker.open == 0, "and its connection is closed")


async def test_a_socket_is_not_closed_under_the_thread_that_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread would go on with a closed socket, and the loop would watch a file that is somebody else's by then."""
    open_socket, connect_it = aiomqtt.Client._on_socket_open, aiomqtt.Client._client_connect
    opened, goes_on, back = asyncio.Event(), threading.Event(), asyncio.Event()
    loop, complaints = asyncio.get_running_loop(), list[str]()

    def paused(*arguments: Any) -> None:
        loop.call_soon_threadsafe(opened.set)
        goes_on.wait(60)
        open_socket(*arguments)

    def connected(client: aiomqtt.Client) -> None:
        try:
            connect_it(client)
        finally:
            loop.call_soon_threadsafe(back.set)

    monkeypatch.setattr(aiomqtt.Client, "_on_socket_open", paused)
    monkeypatch.setattr(aiomqtt.Client, "_client_connect", connected)
    loop.set_exception_handler(lambda _, what: complaints.append(str(what)))
    async with ScriptedBroker() as broker:
        task = asyncio.create_task(hold(options(broker.port, 300.0, tls=False)))
        await opened.wait()
        task.cancel()
        await asyncio.wait([task], timeout=60)
        assert task.cancelled()
        assert broker.open == 1
        goes_on.set()
        await back.wait()
        await eventually_async(lambda: broker.open == 0)
    assert not complaints


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("first", ["cancelled", "closed"])
async def test_a_broker_that_closes_while_the_connect_is_cancelled(first: str, turns: int) -> None:
    """Both ends give up within a few turns of the loop: nothing fails over the other's end."""
    loop, complaints, both = asyncio.get_running_loop(), list[str](), asyncio.Event()
    loop.set_exception_handler(lambda _, what: complaints.append(f"{what['message']} {what.get('exception')!r}"))

    async def hook(stage: str) -> bool:
        if stage == "accept":
            return True
        ends: list[Callable[[], object]] = [task.cancel, broker.hang_up]
        for end in ends if first == "cancelled" else reversed(ends):
            end()
            for _ in range(turns):
                await asyncio.sleep(0)
        both.set()
        return False

    async with ScriptedBroker(hook) as broker:
        task = asyncio.create_task(hold(options(broker.port, 300.0, tls=False)))
        await asyncio.wait([task], timeout=60)
        await both.wait()
        assert task.cancelled() or isinstance(task.exception(), ConnectionLost)
        await eventually_async(lambda: broker.open == 0)
        gc.collect(1)
    assert not complaints


async def test_a_task_that_was_cancelled_before_may_say_goodbye() -> None:
    """An agent announces that it is offline on its way out: that connect is no forgotten cancellation."""
    said = asyncio.Event()

    async def leave(connection: Connection) -> None:
        await connection.publish("status", b"offline", retain=True)
        said.set()

    async with ScriptedBroker() as broker:

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                async with connect(options(broker.port, 30.0, tls=False)) as connection:
                    await leave(connection)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=60)
        assert task.cancelled()
        assert said.is_set()
        await eventually_async(lambda: broker.open == 0)

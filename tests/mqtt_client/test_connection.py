"""A connection under every cancellation and every refusal: broken, a process that is asked to stop waits for itself."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from mqtt_client import (
    Backoff,
    Connection,
    ConnectionLost,
    ConnectionOptions,
    TlsUnusable,
    client_context,
    connect,
    stay_connected,
)
from testbed.eventually import eventually_async
from tests.mqtt_client.scripted_broker import ScriptedBroker
from wire_protocol.address import BrokerAddress

STAGES = [
    f"{packet}{when}"
    for packet in ("connect", "subscribe", "publish", "unsubscribe", "disconnect")
    for when in ("", " answered")
]


def options(broker: ScriptedBroker, **changes: Any) -> ConnectionOptions:
    """How a test connects."""
    chosen = {"timeout_s": 30.0, "mqtt_5": broker.mqtt_5} | changes
    return ConnectionOptions(address=BrokerAddress("127.0.0.1", broker.port), client_id="test", **chosen)


async def everything(made: ConnectionOptions, received: asyncio.Event) -> None:
    """Every call of a connection, one after the other."""
    async with connect(made) as connection:
        await connection.subscribe([("a", 1), ("b", 0)])
        await connection.publish("topic", b"payload")
        await connection.unsubscribe(["a"])
        received.set()
        async for _ in connection.messages():
            break


async def nothing_is_left(broker: ScriptedBroker, before: set["asyncio.Task[Any]"]) -> None:
    """No socket is open and no task of ours runs."""
    await eventually_async(lambda: broker.open == 0, "the broker has no connection left")
    await eventually_async(
        lambda: not [each for each in asyncio.all_tasks() - before if "_serve" not in repr(each.get_coro())],
        "no task is left",
    )


@pytest.mark.parametrize("mqtt_5", [True, False], ids=["5", "3.1.1"])
@pytest.mark.parametrize("later", range(4), ids=lambda turns: f"{turns} turns later")
@pytest.mark.parametrize("stage", STAGES)
async def test_a_cancellation_at_any_packet_ends_the_task_and_leaves_nothing(
    stage: str, later: int, *, mqtt_5: bool
) -> None:
    """Just before the broker's answer, together with it, and some turns of the loop after it."""
    cancelled = asyncio.Event()

    async def hook(reached: str) -> bool:
        if reached == stage:
            for _ in range(later):
                await asyncio.sleep(0)
            task.cancel()
            cancelled.set()
        return True

    async with ScriptedBroker(hook, mqtt_5=mqtt_5) as broker:
        before, received = asyncio.all_tasks(), asyncio.Event()
        task = asyncio.create_task(everything(options(broker), received))
        if stage.startswith("disconnect"):
            await received.wait()
            broker.send(b"b", b"news")
        await asyncio.wait([task], timeout=60)
        assert task.done(), "it waits for itself"
        if stage.startswith("disconnect") and not task.cancelled():
            task.result()  # it had ended before: a broker does not answer to DISCONNECT
        else:
            assert cancelled.is_set()
            assert task.cancelled()
        await nothing_is_left(broker, before)


@pytest.mark.parametrize("silent_at", ["accept", "connect", "subscribe", "publish", "unsubscribe"])
async def test_a_cancellation_while_the_broker_is_silent_ends_the_task_soon(silent_at: str) -> None:
    """A black hole must not hold up a process that is asked to stop for a whole time limit."""
    reached = asyncio.Event()

    async def hook(stage: str) -> bool:
        if stage == silent_at:
            reached.set()
            return False
        return True

    async with ScriptedBroker(hook) as broker:
        task = asyncio.create_task(everything(options(broker, timeout_s=300.0), asyncio.Event()))
        await reached.wait()
        task.cancel()
        await asyncio.wait([task], timeout=60)
        assert task.cancelled()


class Forgetful:
    """aiomqtt before Python 3.12: its answer comes in the very moment of a cancellation, which is forgotten."""

    def __init__(self, error: Exception | None) -> None:
        self.asked, self._error, self.packet_bytes_max = asyncio.Event(), error, 1 << 28

    async def _answer(self, *_: object, **__: object) -> list[int]:
        self.asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        if self._error is not None:
            raise self._error
        return []

    publish = subscribe = unsubscribe = _answer


@pytest.mark.parametrize("error", [None, OSError("Broken pipe")], ids=["answer", "error"])
@pytest.mark.parametrize(
    "call",
    [
        lambda connection: connection.publish("topic", b"payload"),
        lambda connection: connection.subscribe("a"),
        lambda connection: connection.unsubscribe(["a"]),
    ],
    ids=["publish", "subscribe", "unsubscribe"],
)
async def test_a_cancellation_that_comes_with_the_answer_is_raised(
    call: Callable[[Connection], Coroutine[Any, Any, None]], error: Exception | None
) -> None:
    """A worker that was asked to stop just then waited for itself forever, and held its gateways' shards."""
    client = Forgetful(error)
    task = asyncio.create_task(call(Connection(cast("Any", client))))
    await client.asked.wait()
    task.cancel()
    await asyncio.wait([task], timeout=30)
    assert task.cancelled()


async def test_a_broker_that_closes_before_its_answer_is_not_waited_for() -> None:
    """As one does that starts; the time limit of five minutes would outlast the test."""

    async def hook(stage: str) -> bool:
        if stage == "connect":
            broker.hang_up()
        return True

    async with ScriptedBroker(hook) as broker:
        with pytest.raises(ConnectionLost, match="without an answer"):
            async with connect(options(broker, timeout_s=300.0)):
                pass


@pytest.mark.parametrize("mqtt_5", [True, False], ids=["5", "3.1.1"])
async def test_a_broker_that_refuses_is_a_lost_connection(*, mqtt_5: bool) -> None:
    """Bad user or password; and a subscription that is refused leaves a connection of no use."""
    async with ScriptedBroker(mqtt_5=mqtt_5, connack=0x87 if mqtt_5 else 5) as broker:
        with pytest.raises(ConnectionLost, match=r"(?i)not authori[sz]ed"):
            async with connect(options(broker)):
                pass
        await eventually_async(lambda: broker.open == 0)
    async with ScriptedBroker(mqtt_5=mqtt_5, suback=0x87 if mqtt_5 else 0x80) as broker:
        with pytest.raises(ConnectionLost, match="refuses the subscription"):
            async with connect(options(broker)) as connection:
                await connection.subscribe("forbidden")


async def test_a_refused_publish_is_reported_and_ends_nothing() -> None:
    """A PUBACK with a reason code of 0x80 or above was taken for a success."""
    refused = list[str]()
    async with ScriptedBroker(puback=0x87) as broker, connect(options(broker, publish_refused=refused.append)) as made:
        await made.publish("topic", b"payload")
        await made.publish("topic", b"payload", 0)
    assert len(refused) == 1
    assert "authorized" in refused[0]


async def test_a_session_that_was_taken_over_says_so() -> None:
    """The uplink slows down: a gateway that comes back at once only takes the session back."""
    async with ScriptedBroker() as broker, connect(options(broker)) as made:
        broker.disconnect(0x8E)
        with pytest.raises(ConnectionLost):
            await anext(made.messages())
        assert made.was_taken_over


async def test_contacts_follow_each_other_until_cancelled() -> None:
    """Whatever ends a contact: the broker, a publish that fails in a task, or a cancellation that was nobody's."""
    ends, contacts = list[str](), asyncio.Semaphore(0)

    async def contact() -> None:
        async with connect(options(broker)) as connection, asyncio.TaskGroup() as tasks:
            contacts.release()
            match len(ends) % 3:
                case 0:
                    broker.hang_up()
                case 1:
                    tasks.create_task(_fail())  # the group's body has ended: it cancels the contact's own task
                    return
                case 2:
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
            async for _ in connection.messages():
                pass

    async with ScriptedBroker() as broker:
        before = asyncio.all_tasks()
        backoff = Backoff(0.001, 0.001)
        running = asyncio.create_task(
            stay_connected(contact, lambda error: ends.append(str(error)), backoff, "contact")
        )
        async with asyncio.timeout(60):
            for _ in range(7):
                await contacts.acquire()
        running.cancel()
        await asyncio.wait([running], timeout=30)
        assert running.cancelled()
        await nothing_is_left(broker, before)
    assert len(ends) >= 6
    assert "ended by itself" in ends[2]


async def test_a_contact_that_forgets_its_cancellation_is_cancelled_again() -> None:
    """One handler that swallows it would keep the process forever."""
    begun, forgotten = asyncio.Event(), list[int]()

    async def contact() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            begun.set()
            await asyncio.Event().wait()
        forgotten.append(1)
        await asyncio.Event().wait()

    running = asyncio.create_task(stay_connected(contact, lambda _: None, Backoff(0.001, 0.001), "contact"))
    await begun.wait()
    running.cancel()
    await asyncio.wait([running], timeout=30)
    assert running.cancelled()
    assert forgotten == [1]


async def test_small_messages_are_sent_at_once() -> None:
    """Nagle's algorithm held each back until the acknowledgement of the one before, 40 ms later."""
    async with ScriptedBroker() as broker, connect(options(broker)) as made:
        opened = made._client._client.socket()
        assert isinstance(opened, socket.socket)
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def _fail() -> None:
    await asyncio.sleep(0)
    raise ConnectionLost("the publish failed")


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_a_cancellation_ends_the_contacts_in_whatever_turn_it_comes(turns: int) -> None:
    """While it connects, while the broker hangs up, in the pause between two contacts."""

    async def contact() -> None:
        async with connect(options(broker)) as connection:
            broker.hang_up()
            await connection.publish("topic", b"payload")

    async with ScriptedBroker() as broker:
        before = asyncio.all_tasks()
        running = asyncio.create_task(stay_connected(contact, lambda _: None, Backoff(0.001, 0.001), "contact"))
        for _ in range(turns):
            await asyncio.sleep(0.001 if turns % 2 else 0)
        running.cancel()
        await asyncio.wait([running], timeout=30)
        assert running.cancelled()
        await nothing_is_left(broker, before)


def test_pauses_grow_to_their_bound_with_jitter_and_begin_again() -> None:
    """Doubled without an end, the pause after a night's outage would be hours; in step, a thousand come at once."""
    backoff = Backoff(0.5, 20.0, uniform=lambda _low, high: high)
    assert [backoff.next_s() for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    backoff.reset()
    assert backoff.next_s() == 0.5
    backoff.slow_down()
    assert backoff.next_s() == 20.0
    assert len({Backoff(1.0, 20.0).next_s() for _ in range(20)}) > 10


def test_files_for_tls_that_cannot_be_used_say_what_to_do() -> None:
    """A worker that cannot show its certificate must not connect without one."""
    address = BrokerAddress.parse("mqtts://broker")
    assert client_context(BrokerAddress.parse("mqtt://broker"), None) is None
    with pytest.raises(TlsUnusable, match="cannot be used") as caught:
        client_context(address, "/no/such/file.pem")
    assert "STOCKTIDE_MQTT_CA_FILE" in (caught.value.hint or "")
    with pytest.raises(TlsUnusable, match="over TLS only"):
        client_context(BrokerAddress.parse("mqtt://broker"), None, "cert.pem", "key.pem")

"""One connection to a broker: opened, used, closed; whatever is cancelled at whatever moment.

aiomqtt waits with `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that comes together with the
answer (https://bugs.python.org/issue37658): a task that was asked to end would go on. So every call here raises such a
cancellation afterwards.

Invariant: a connection that was opened is closed, also when its opening was cancelled.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, NamedTuple, TypeVar

import aiomqtt
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mqtt_client.errors import ConnectionLost
from mqtt_client.options import ConnectionOptions

# Small messages one after the other: Nagle's algorithm (RFC 896) would hold each back until the broker's delayed
# acknowledgement of the one before, 40 ms later.
NO_DELAY: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
TAKEN_OVER: Final = 0x8E  # reason code of a session that another client with its client id took over (MQTT 5, 3.14.2.1)
# How long a cancelled caller waits for a connect that is under way in a thread; what is opened later is closed then.
CANCELLED_CONNECT_S: Final = 0.5
T = TypeVar("T")


class Incoming(NamedTuple):
    """A message of the broker."""

    topic: str
    payload: bytes
    retain: bool


class Connection:
    """An open connection. Every call raises ConnectionLost when it is lost or the broker does not answer in time."""

    def __init__(self, client: "_Client") -> None:
        self._client = client

    @property
    def was_taken_over(self) -> bool:
        """Whether the broker ended it because another client connected under its client id (MQTT 5 only)."""
        return self._client.taken_over

    async def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """Publish, and with QoS 1 wait until the broker has the message, or has refused it."""
        try:
            await self._client.publish(topic, payload, qos=qos, retain=retain)
        except (aiomqtt.MqttError, OSError, TimeoutError) as error:
            raise _lost(error) from error
        raise_swallowed()

    async def subscribe(self, filters: str | Sequence[tuple[str, int]], qos: int = 1) -> None:
        """Subscribe to one filter, or to several with their QoS.

        Raises:
            ConnectionLost: also when the broker refuses a subscription; without it the connection is of no use.
        """
        with _as_lost():
            granted = await self._client.subscribe(filters if isinstance(filters, str) else list(filters), qos=qos)
        raise_swallowed()
        refused = [code for code in granted if _is_failure(code)]
        if refused:
            raise ConnectionLost(f"The broker refuses the subscription to {filters!r}: {refused[0]}.")

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Take subscriptions back."""
        with _as_lost():
            await self._client.unsubscribe(list(filters))
        raise_swallowed()

    async def messages(self) -> AsyncIterator[Incoming]:
        """The broker's messages, until the connection ends, which raises ConnectionLost."""
        with _as_lost():
            async for message in self._client.messages:
                yield Incoming(message.topic.value, message.payload, message.retain)


@asynccontextmanager
async def connect(options: ConnectionOptions) -> AsyncIterator[Connection]:
    """A connection for the block.

    Raises:
        ConnectionLost: the broker cannot be reached, or refuses us.
    """
    client = _Client(options)
    await _open(client)
    try:
        yield Connection(client)
    finally:
        await _uninterrupted(client.close(), "mqtt.close")


async def _open(client: "_Client") -> None:
    opening = asyncio.create_task(client.open(), name="mqtt.open")
    try:
        await asyncio.wait([opening])
    except asyncio.CancelledError:
        # The connect itself is under way in a thread, and cannot be interrupted.
        with suppress(asyncio.CancelledError):
            await asyncio.wait([opening], timeout=CANCELLED_CONNECT_S)
        opening.add_done_callback(client.abandon)
        raise
    opening.result()
    raise_swallowed()


async def _uninterrupted(call: Coroutine[Any, Any, T], name: str) -> T:
    """Finish a call, which has its time limit, and raise a cancellation that came meanwhile after it."""
    task = asyncio.create_task(call, name=name)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        task.exception()  # what it was no longer matters
        raise asyncio.CancelledError
    return task.result()


def raise_swallowed() -> None:
    """Raise a cancellation of the current task that was swallowed; see the module's docstring."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


@contextmanager
def _as_lost() -> Iterator[None]:
    """Errors of the library and of the socket as ConnectionLost."""
    try:
        yield
    except (aiomqtt.MqttError, OSError, TimeoutError) as error:
        raise _lost(error) from error


def _lost(error: Exception) -> ConnectionLost:
    return ConnectionLost(str(error) or "no answer within the time limit")


def _is_failure(code: "int | ReasonCode") -> bool:
    return code.is_failure if isinstance(code, ReasonCode) else code >= 0x80  # noqa: PLR2004 - MQTT 3.1.1, section 3.9.3


class _Client(aiomqtt.Client):
    """aiomqtt's client, which notices more here than it does by itself."""

    def __init__(self, options: ConnectionOptions) -> None:
        address, will = options.address, options.will
        self.taken_over = False
        self._publish_refused = options.publish_refused
        super().__init__(
            address.host,
            address.port,
            username=address.user,
            password=address.password,
            identifier=options.client_id,
            protocol=aiomqtt.ProtocolVersion.V5 if options.mqtt_5 else aiomqtt.ProtocolVersion.V311,
            clean_session=None if options.mqtt_5 else True,
            will=None if will is None else aiomqtt.Will(will.topic, will.payload, qos=will.qos, retain=will.retain),
            keepalive=options.keepalive_s,
            timeout=options.timeout_s,
            tls_context=options.tls,
            socket_options=NO_DELAY,
            max_queued_incoming_messages=options.incoming_max,
            max_inflight_messages=options.inflight_max,
        )
        self.pending_calls_threshold = options.calls_max

    async def open(self) -> None:
        """Connect; what a failed attempt has opened is closed again."""
        try:
            with _as_lost():
                await self.__aenter__()
        except BaseException:
            self._close_socket()
            raise

    async def close(self) -> None:
        """Disconnect, as politely as the broker lets us."""
        with suppress(aiomqtt.MqttError, OSError, TimeoutError):
            await self.__aexit__(None, None, None)
        self._close_socket()

    def abandon(self, opening: "asyncio.Task[None]") -> None:
        """The attempt to connect has ended after its caller was gone."""
        if not opening.cancelled():
            opening.exception()
        self._close_socket()

    def _close_socket(self) -> None:
        if self._client.socket() is not None:
            self._client._sock_close()  # noqa: SLF001 - paho has no public way that does not wait for the broker

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason_code: ReasonCode, properties: Properties | None = None
    ) -> None:
        self.taken_over = reason_code.value == TAKEN_OVER
        if not self._connected.done():
            # As a broker that starts, or a proxy before it, does: not waited for until the time limit.
            self._connected.set_exception(aiomqtt.MqttError("the broker closed the connection without an answer"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        if reason_code.is_failure:
            self._publish_refused(str(reason_code))
        super()._on_publish(client, userdata, mid, reason_code, properties)

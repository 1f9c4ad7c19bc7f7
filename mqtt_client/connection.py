"""One connection to a broker: opened, used, closed; whatever is cancelled at whatever moment.

aiomqtt waits with `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that comes together with the
answer (https://bugs.python.org/issue37658): a task that was asked to end would go on. So every call here raises such a
cancellation afterwards.

It connects in a thread, which nothing can interrupt: TCP and TLS to a host that is silent take longer than the time
limit. The caller does not wait for the thread; its socket is closed when it comes back.

Invariant: a connection that was opened is closed, also when its opening was cancelled or took too long.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, NamedTuple, TypeVar

import aiomqtt
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mqtt_client.errors import ConnectionLost, MessageTooLarge
from mqtt_client.options import ConnectionOptions
from mqtt_client.problems import ANSWERED_NOTHING

# Small messages one after the other: Nagle's algorithm (RFC 896) would hold each back until the broker's delayed
# acknowledgement of the one before, 40 ms later.
NO_DELAY: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
TAKEN_OVER: Final = 0x8E  # reason code of a session that another client with its client id took over (MQTT 5, 3.14.2.1)
# The longest wait for one address of a host, so that there is time for its next one (paho's own default).
TCP_CONNECT_S_MAX: Final = 5.0
# The packet's own bytes beside topic and payload: the fixed header, the topic's length, the packet's number, and the
# length of the properties, of which we send none (MQTT 5, 3.3).
PACKET_OVERHEAD_BYTES: Final = 16
PACKET_BYTES_MAX: Final = 268_435_455 + 5  # the largest that MQTT knows
PAHO_INFLIGHT_MAX: Final = 20  # paho's own default
RECEIVE_MAX: Final = 65_535  # what a broker that says nothing takes at a time
NO_ANSWER: Final = "no answer within the time limit"
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

    def payload_bytes_max(self, topic: str) -> int:
        """The largest payload that the broker takes on a topic, as far as it has said (MQTT 5 only)."""
        return self._client.packet_bytes_max - PACKET_OVERHEAD_BYTES - len(topic.encode())

    async def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """Publish, and with QoS 1 wait until the broker has the message, or has refused it.

        Raises:
            MessageTooLarge: the broker does not take so large a message; it was not sent, and the connection lives.
        """
        if len(payload) > (bytes_max := self.payload_bytes_max(topic)):
            raise MessageTooLarge(topic, len(payload), bytes_max)
        with _call():
            await self._client.publish(topic, payload, qos=qos, retain=retain)

    async def subscribe(self, filters: str | Sequence[tuple[str, int]], qos: int = 1) -> None:
        """Subscribe to one filter, or to several with their QoS.

        Raises:
            ConnectionLost: also when the broker refuses a subscription; without it the connection is of no use.
        """
        with _call():
            granted = await self._client.subscribe(filters if isinstance(filters, str) else list(filters), qos=qos)
        refused = [code for code in granted if _is_failure(code)]
        if refused:
            raise ConnectionLost(f"The broker refuses the subscription to {filters!r}: {refused[0]}.")

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Take subscriptions back."""
        with _call():
            await self._client.unsubscribe(list(filters))

    async def messages(self) -> AsyncIterator[Incoming]:
        """The broker's messages, until the connection ends, which raises ConnectionLost."""
        while True:
            with _call():
                message = await anext(self._client.messages)
            yield Incoming(message.topic.value, message.payload, message.retain)


@asynccontextmanager
async def connect(options: ConnectionOptions) -> AsyncIterator[Connection]:
    """A connection for the block.

    Raises:
        ConnectionLost: the broker cannot be reached, refuses us, or does not answer within the time limit.
    """
    client = _Client(options)
    await _open(client, options.timeout_s)
    try:
        yield Connection(client)
    finally:
        await _uninterrupted(client.close(), "mqtt.close")


async def _open(client: "_Client", timeout_s: float) -> None:
    opening = asyncio.create_task(client.open(), name="mqtt.open")
    try:
        await asyncio.wait([opening], timeout=timeout_s)
    except asyncio.CancelledError:
        await _uninterrupted(client.give_up(opening), "mqtt.give_up")
        raise
    if not opening.done():
        await _uninterrupted(client.give_up(opening), "mqtt.give_up")
        raise ConnectionLost(NO_ANSWER)
    opening.result()


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


@contextmanager
def _call() -> Iterator[None]:
    """One call of the library: its errors as ConnectionLost, and a cancellation of this task that it forgot.

    Only one that came during the call: a task that was cancelled before may have been let go on by its caller, to say
    goodbye, or by a task group, which before Python 3.13 does not take its own cancellation back
    (https://github.com/python/cpython/issues/116720).
    """
    before = _cancellations()
    try:
        yield
    except (
        aiomqtt.MqttError,
        OSError,
        TimeoutError,
        UnicodeError,
    ) as error:  # the last: a host that no DNS can be asked
        if _cancellations() > before:
            raise asyncio.CancelledError from error
        raise ConnectionLost(str(error) or NO_ANSWER) from error
    if _cancellations() > before:
        raise asyncio.CancelledError


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _retrieve(future: "asyncio.Future[Any]") -> None:
    """Look at how it ended; asyncio logs an exception that was never looked at."""
    if not future.cancelled():
        future.exception()


def _is_failure(code: "int | ReasonCode") -> bool:
    return code.is_failure if isinstance(code, ReasonCode) else code >= 0x80  # noqa: PLR2004 - MQTT 3.1.1, section 3.9.3


class _TlsSocket(ssl.SSLSocket):
    """Closed when its handshake fails; paho leaves it to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the library's signature
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class _Client(aiomqtt.Client):
    """aiomqtt's client, which notices more here than it does by itself."""

    def __init__(self, options: ConnectionOptions) -> None:
        address, will = options.address, options.will
        self.taken_over = False
        self.packet_bytes_max = PACKET_BYTES_MAX
        self._inflight_max = options.inflight_max or PAHO_INFLIGHT_MAX
        self._publish_refused = options.publish_refused
        if options.tls is not None:
            options.tls.sslsocket_class = _TlsSocket
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
        self._client.connect_timeout = min(options.timeout_s, TCP_CONNECT_S_MAX)
        self._is_in_thread = self._is_given_up = False
        self._disconnected.add_done_callback(_retrieve)

    async def open(self) -> None:
        """Connect; what a failed attempt has opened is closed again."""
        try:
            with _call():
                await self.__aenter__()
        except BaseException:
            self._is_given_up = True
            self._close_socket()
            raise

    async def give_up(self, opening: "asyncio.Task[None]") -> None:
        """End an attempt to connect that its caller gave up; one that has just succeeded is closed."""
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled() and opening.exception() is None:
            await self.close()

    async def close(self) -> None:
        """Disconnect, as politely as the broker lets us."""
        with suppress(aiomqtt.MqttError, OSError, TimeoutError):
            await self.__aexit__(None, None, None)
        self._close_socket()

    def _client_connect(self) -> None:
        """Part of aiomqtt: runs in a thread."""
        self._is_in_thread = True
        try:
            super()._client_connect()
        finally:
            with suppress(RuntimeError):  # the loop is closed, and with the process the socket
                self._loop.call_soon_threadsafe(self._is_back)

    def _is_back(self) -> None:
        self._is_in_thread = False
        if self._is_given_up:
            self._close_socket()

    def _close_socket(self) -> None:
        # A thread that still connects would go on with a closed socket; `_is_back` closes what it has opened.
        if not self._is_in_thread and self._client.socket() is not None:
            self._client._sock_close()  # noqa: SLF001 - paho has no public way that does not wait for the broker

    def _on_connect(
        self,
        client: Any,
        userdata: Any,
        flags: Any,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        """What the broker says that it takes holds from the first message on (MQTT 5, 3.2.2.3)."""
        said = {} if properties is None else vars(properties)
        self.packet_bytes_max = min(PACKET_BYTES_MAX, said.get("MaximumPacketSize", PACKET_BYTES_MAX))
        receive_max = said.get("ReceiveMaximum", RECEIVE_MAX)
        # paho has a public way only before it is connected, when nobody knows the number; nothing is on its way yet.
        client._max_inflight_messages = min(self._inflight_max, receive_max)  # noqa: SLF001
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason_code: ReasonCode, properties: Properties | None = None
    ) -> None:
        self.taken_over = reason_code.value == TAKEN_OVER
        if self._connected.cancelled():
            return
        if not self._connected.done():
            # As a broker that starts, or a proxy before it, does: not waited for until the time limit.
            self._connected.set_exception(aiomqtt.MqttError(ANSWERED_NOTHING))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        if reason_code.is_failure:
            self._publish_refused(str(reason_code))
        super()._on_publish(client, userdata, mid, reason_code, properties)

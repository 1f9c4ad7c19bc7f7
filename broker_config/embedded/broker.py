"""A broker inside a Python process: amqtt with our topic policy, for the demo and for tests on one machine.

It does what Stocktide needs of any broker: QoS 0 and 1, retained messages, last wills, persistent sessions that queue
what arrives while their client is away, TLS with certificates and a revocation list. It speaks MQTT 3.1.1 only. What
amqtt 0.12 cannot do, and Mosquitto can:

- MQTT 5: such a client is refused with "unacceptable protocol version".
- Redelivery of what was in flight: a QoS 1 message that was sent to a client and not acknowledged when the connection
  broke, or within 5 s, is forgotten. Only what arrived while the client was away is delivered when it returns, and
  comes with the retain flag set. Stocktide does not depend on it: frames and device events are sent again end to end.
- Keepalive: a half-open connection is noticed only when its client comes back.
- Bounds: queues grow with what clients leave in them, and a packet after the first may have any size. Connections have
  one bound, `connections_max`, over all doors; one that has not ended its TLS handshake counts too.

amqtt opens no socket here: `doors.py` says where we listen and whom we let in, `admission.py` reads the first packet,
and amqtt is given the connection by its interface for listeners that are not its own.

Invariant: it listens on loopback only, and remembers nothing after it stops.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from amqtt.adapters import StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action as AmqttAction
from amqtt.session import Session

from broker_config.embedded import listeners
from broker_config.embedded.admission import admitted
from broker_config.embedded.listeners import Listener
from broker_config.errors import BrokerStartFailed
from broker_config.limits import EMBEDDED_CONNECTIONS_MAX
from broker_config.policy import Side, matches

HOST: Final = "127.0.0.1"
SESSION_S_MAX: Final = 24 * 3600
HANDSHAKE_S_MAX: Final = 10.0
ACCEPT_PAUSE_S: Final = 1.0
END_S_MAX: Final = 5.0
_PLUGIN: Final = "broker_config.embedded.amqtt_plugin.PolicyPlugin"
_LISTENER: Final = "default"


class EmbeddedBroker:
    """`async with EmbeddedBroker(side=Side.CLOUD, users=passwords.read(file)) as broker:` serves `broker.port`.

    `users` are names with hashes as in a password file; without them every client may do anything. Port 0 takes a free
    one. `given` are doors in the place of that one, as `doors.fleet(…)` has them. `connections_max` is how many
    connections all doors have together: one more is closed as soon as it is accepted.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        side: Side = Side.CLOUD,
        users: Mapping[str, str] | None = None,
        given: Sequence[Listener] = (),
        connections_max: int = EMBEDDED_CONNECTIONS_MAX,
    ) -> None:
        self._side, self._given = side, list(given) or [listeners.only(port, side, users)]
        self._connections_max = connections_max
        self._listeners: dict[str, _OpenListener] = {}
        # Of all doors, from the moment they are accepted; a writer as soon as its TLS handshake has ended.
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter | None] = {}
        self._clients: dict[str, asyncio.Task[Any]] = {}

    async def __aenter__(self) -> Self:
        # amqtt reports each client's coming and going, and each malformed packet, as a warning.
        logging.getLogger("amqtt").setLevel(logging.CRITICAL)
        logging.getLogger("transitions").setLevel(logging.WARNING)
        self._broker = _PolicyBroker(
            {
                "listeners": {_LISTENER: {"type": "external"}},
                "session_expiry_interval": SESSION_S_MAX,
                "plugins": {_PLUGIN: {"side": self._side.value}},
            }
        )
        await self._broker.start()
        try:
            await self.open(self._given)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def open(self, wanted: Sequence[Listener]) -> None:
        """Open doors, or put others in the place of those of the same name; who is inside stays.

        Raises:
            BrokerStartFailed: a port is taken.
            InvalidConfig: the files of a door cannot be used; it is as it was.
        """
        for listener in wanted:
            known = self._listeners.get(listener.name)
            opened = known or _OpenListener(listener.port)
            try:
                opened.open(listener, self._accepted)
            except BaseException:
                if known is None:
                    opened.close()
                raise
            self._listeners[listener.name] = opened

    def port_of(self, name: str) -> int:
        """The port of a door."""
        return self._listeners[name].port

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that clients connect to, where there is one door."""
        (opened,) = self._listeners.values()
        return opened.port

    @property
    def url(self) -> str:
        return f"mqtt://{HOST}:{self.port}"

    async def _stop(self) -> None:
        for opened in self._listeners.values():
            opened.close()
        await asyncio.sleep(0)  # a task that is cancelled before its first step would not close its socket
        # amqtt waits for clients that have connected and sent nothing, and does not wait for those that are closing.
        await self._end(*self._connections)
        await self._broker.shutdown()
        await self._end(*self._connections)

    def _accepted(self, listener: Listener, context: ssl.SSLContext | None, accepted: socket.socket) -> None:
        """Count a connection, and serve it; close it when there are as many as there may be."""
        if len(self._connections) >= self._connections_max:
            accepted.close()
            return
        connection = asyncio.create_task(
            self._serve(listener, context, accepted), name=f"broker.connection[{listener.name}]"
        )
        self._connections[connection] = None

    async def _serve(self, listener: Listener, context: ssl.SSLContext | None, accepted: socket.socket) -> None:
        """One connection, from its TLS handshake to its end."""
        connection = asyncio.current_task()
        assert connection is not None  # noqa: S101 - a coroutine runs in a task
        try:
            reader, writer = await _streams(context, accepted)
        except OSError:  # ssl.SSLError is one
            return
        else:
            self._connections[connection] = writer
            await self._arrived(connection, listener, reader, writer)
        finally:
            del self._connections[connection]

    async def _arrived(
        self,
        connection: asyncio.Task[Any],
        listener: Listener,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """One connection, from its first packet to its end."""
        client_id: str | None = None
        try:
            entered = await admitted(listener, self._side, reader, writer)
            if entered is None:
                return
            who, handed = entered
            # One connection of a client id: the later one takes the place (MQTT-3.1.4-2).
            while (previous := self._clients.get(who.client_id)) is not None:
                await self._end(previous)
            client_id = who.client_id
            self._clients[client_id] = connection
            await self._broker.external_connected(handed, StreamWriterAdapter(writer), _LISTENER)
        finally:
            if client_id is not None and self._clients.get(client_id) is connection:
                del self._clients[client_id]
            writer.close()

    async def _end(self, *connections: asyncio.Task[Any]) -> None:
        """Close connections at once, whether their other ends read or not."""
        if not connections:
            return
        for connection in connections:
            if (writer := self._connections.get(connection)) is not None:
                writer.transport.abort()
            else:
                connection.cancel()  # in its handshake, or at its end already
        _, left = await asyncio.wait(connections, timeout=END_S_MAX)
        for connection in left:
            connection.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _streams(
    context: ssl.SSLContext | None, accepted: socket.socket
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The streams of an accepted connection, after its TLS handshake if there is to be one.

    Raises:
        OSError: the handshake failed, or took too long.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, accepted, ssl=context, ssl_handshake_timeout=None if context is None else HANDSHAKE_S_MAX
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _OpenListener:
    """A socket that serves one listener's rules, then another's: no connection is refused in between.

    Its own accept, because asyncio's servers report a connection only after its TLS handshake: until then nothing would
    count it.
    """

    def __init__(self, port: int) -> None:
        try:
            self._socket = socket.create_server((HOST, port))
        except OSError as error:
            raise BrokerStartFailed(
                f"The embedded broker cannot listen on port {port}.",
                hint="Is another broker running there? --port 0 takes a free one.",
            ) from error
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def open(
        self, listener: Listener, accepted: Callable[[Listener, ssl.SSLContext | None, socket.socket], None]
    ) -> None:
        """Let in by this door from now on."""
        context = None if listener.tls is None else listener.tls()
        self._loop.add_reader(self._socket, self._accept, lambda connection: accepted(listener, context, connection))

    def _accept(self, accepted: Callable[[socket.socket], None]) -> None:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # No file descriptor is left: the connection waits in the kernel, and we would spin.
            self._loop.remove_reader(self._socket)
            self._again = self._loop.call_later(
                ACCEPT_PAUSE_S, self._loop.add_reader, self._socket, self._accept, accepted
            )
            return
        connection.setblocking(False)
        accepted(connection)

    def close(self) -> None:
        """Listen no longer."""
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()


class _Subscriptions(dict[str, list[tuple[Session, int]]]):
    """Subscribers by filter, safe to iterate while others subscribe: amqtt awaits within its loops over them."""

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().keys()))

    def items(self) -> Any:
        return [(pattern, list(subscribers)) for pattern, subscribers in super().items()]


class _PolicyBroker(Broker):
    """amqtt's broker without two defects that a fleet which reconnects runs into.

    It overrides a private method, so pyproject.toml holds amqtt to the versions that this was written for.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        # 1: a client that subscribes while a message is being distributed made the message vanish.
        self._subscriptions = _Subscriptions()

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """2: every client that connected was offered the retained messages of all clients' subscriptions."""
        pattern, qos = subscription
        if not any(client is session for client, _ in self._subscriptions.get(pattern, ())):
            return
        handler = self._get_handler(session)
        chosen = [
            retained
            for topic, retained in list(self._retained_messages.items())
            if matches(pattern, topic) and await self._topic_filtering(session, topic, AmqttAction.RECEIVE)
        ]
        if handler is not None:
            sends = (handler.mqtt_publish(m.topic, m.data, min(qos, m.qos or 0), retain=True) for m in chosen)
            # A client that disconnects meanwhile asks again when it returns.
            await asyncio.gather(*sends, return_exceptions=True)

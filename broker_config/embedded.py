"""A broker inside a Python process: amqtt with our topic policy, for the demo and for tests on one machine.

It does what Stocktide needs of any broker: QoS 0 and 1, retained messages, last wills, persistent sessions that queue
what arrives while their client is away. It speaks MQTT 3.1.1 only. What amqtt 0.12 cannot do, and Mosquitto can:

- MQTT 5: such a client is refused with "unacceptable protocol version".
- Redelivery of what was in flight: a QoS 1 message that was sent to a client and not acknowledged when the connection
  broke, or within 5 s, is forgotten. Only what arrived while the client was away is delivered when it returns, and
  comes with the retain flag set. Stocktide does not depend on it: frames and device events are sent again end to end.
- Keepalive: a half-open connection is noticed only when its client comes back.
- Bounds: queues grow with what clients leave in them.
- Safety against other programs of this machine: amqtt looks a session up before it asks for the password.

Invariant: it listens on loopback only, and remembers nothing after it stops.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

from amqtt.adapters import ReaderAdapter, WriterAdapter
from amqtt.broker import Broker, Server
from amqtt.contexts import Action as AmqttAction
from amqtt.errors import BrokerError as AmqttBrokerError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.session import Session

from broker_config.errors import BrokerStartFailed
from broker_config.policy import Side, matches

HOST: Final = "127.0.0.1"
CONNECTIONS_MAX: Final = 1_000
SESSION_S_MAX: Final = 24 * 3600
_PLUGIN: Final = "broker_config.amqtt_plugin.PolicyPlugin"
_LISTENER: Final = "default"


class EmbeddedBroker:
    """`async with EmbeddedBroker(side=Side.CLOUD, users=passwords.read(file)) as broker:` serves `broker.port`.

    `users` are names with hashes as in a password file; without them anybody may do anything. Port 0 takes a free one.
    """

    def __init__(self, *, port: int = 0, side: Side = Side.CLOUD, users: Mapping[str, str] | None = None) -> None:
        self._wanted_port = port
        self._config: dict[str, Any] = {
            "listeners": {_LISTENER: {"type": "tcp", "bind": f"{HOST}:{port}", "max_connections": CONNECTIONS_MAX}},
            "session_expiry_interval": SESSION_S_MAX,
            "plugins": {_PLUGIN: {"side": side.value, "users": None if users is None else dict(users)}},
        }

    async def __aenter__(self) -> Self:
        # amqtt reports each client's coming and going, and each malformed packet, as a warning.
        logging.getLogger("amqtt").setLevel(logging.CRITICAL)
        logging.getLogger("transitions").setLevel(logging.WARNING)
        self._broker = _PolicyBroker(self._config)
        try:
            await self._broker.start()
        except AmqttBrokerError as error:
            raise BrokerStartFailed(
                f"The embedded broker cannot listen on port {self._wanted_port}.",
                hint="Is another broker running there? --port 0 takes a free one.",
            ) from error
        self._port = self._broker.port
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # amqtt waits for those who have connected and said nothing, and forgets those who are about to leave.
        await self._broker.drop_connections()
        await self._broker.shutdown()
        await self._broker.drop_connections()

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that clients connect to."""
        return self._port

    @property
    def url(self) -> str:
        return f"mqtt://{HOST}:{self._port}"


class _Subscriptions(dict[str, list[tuple[Session, int]]]):
    """Subscribers by filter, safe to iterate while others subscribe: amqtt awaits within its loops over them."""

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().keys()))

    def items(self) -> Any:
        return [(pattern, list(subscribers)) for pattern, subscribers in super().items()]


class _PolicyBroker(Broker):
    """amqtt's broker without four defects that a fleet which reconnects runs into.

    It overrides private methods, so pyproject.toml holds amqtt to the versions that these were written for.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        # 1: a client that subscribes while a message is being distributed made the message vanish.
        self._subscriptions = _Subscriptions()
        self._loops: dict[BrokerProtocolHandler, asyncio.Event] = {}
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    @property
    def port(self) -> int:
        return int(next(iter(self._servers[_LISTENER].instance.sockets)).getsockname()[1])

    async def drop_connections(self) -> None:
        """Close what is still open, at once, whether the other end reads or not."""
        for connection, writer in self._connections.items():
            writer.transport.abort()
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """4: a connection that had said nothing yet, or whose client was leaving, stayed open after the broker."""
        connection = asyncio.current_task()
        assert connection is not None  # noqa: S101 - a coroutine runs in a task
        self._connections[connection] = writer
        try:
            await super().stream_connected(reader, writer, listener_name)
        except asyncio.CancelledError:
            # Only drop_connections cancels it, and asyncio reports a cancelled connection as an error (before 3.12).
            return
        finally:
            del self._connections[connection]
            writer.close()

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
            # A client that goes away meanwhile asks again when it returns.
            await asyncio.gather(*sends, return_exceptions=True)

    async def _handle_client_session(  # noqa: PLR0917 - amqtt's signature
        self,
        reader: ReaderAdapter,
        writer: WriterAdapter,
        client_session: Session,
        handler: BrokerProtocolHandler,
        server: Server,
        listener_name: str,
    ) -> None:
        """3: a client that came back before its old connection was found dead was marked as away, for good."""
        _, previous = self._sessions.get(client_session.client_id or "", (None, None))
        if previous is not None and (ended := self._loops.get(previous)):
            await previous.handle_connection_closed()
            await previous.stop()
            await ended.wait()
        await super()._handle_client_session(reader, writer, client_session, handler, server, listener_name)

    async def _client_message_loop(self, client_session: Session, handler: BrokerProtocolHandler) -> None:
        ended = self._loops[handler] = asyncio.Event()
        try:
            await super()._client_message_loop(client_session, handler)
        finally:
            del self._loops[handler]
            ended.set()

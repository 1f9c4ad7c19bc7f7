"""The broker side of a worker: subscriptions for the leased shards, arrivals in, acknowledgements out.

The only importer of aiomqtt here. The session is clean and nothing is retained by us: what is in flight when the link
breaks is sent again by the gateways, end to end.

Invariant: this module decides nothing about frames; it hands payloads on and publishes what it is given.
"""

import asyncio
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import aiomqtt
import structlog
from aiomqtt import ProtocolVersion

from cloud_ingest.inbound import Handler, Inbound
from cloud_ingest.mailbox import Report
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
from cloud_ingest.transport import broker_tls
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.errors import WireError
from wire_protocol.topics import Channel, ClaimTopic, DeviceTopic

PUBLISH_TIMEOUT_S: Final = 10.0
# Small messages one after the other: Nagle's algorithm (RFC 896) would hold each back until the broker's delayed
# acknowledgement of the one before, 40 ms later.
NO_DELAY: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
REFUSED_FROM: Final = 0x80
FILTERS_PER_SUBSCRIBE: Final = 16
_LOG = structlog.get_logger()


class _CheckedClient(aiomqtt.Client):
    """A client that notices what aiomqtt passes over.

    A PUBACK with a reason code of 0x80 or above is a failed publish; and a connection that the broker closes before it
    has answered to CONNECT is not waited for until the timeout.
    """

    def __init__(self, refused: Callable[[int], None], **options: Any) -> None:
        self._refused = refused
        super().__init__(**options)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError("the broker closed the connection without an answer"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        if reason_code.value >= REFUSED_FROM:
            self._refused(reason_code.value)
        super()._on_publish(client, userdata, mid, reason_code, properties)


class Link:
    """The connection to the broker, re-established until cancelled.

    `on` registers who takes the messages of a channel. A handler must not wait; one that fails is reported, and the
    next message is handled all the same.

    Args:
        settings: the worker's.
        metrics: the worker's.
        failed: told of a message that its handler could not stand.
        subscribed: told of shards whose subscriptions the broker has confirmed.
    """

    def __init__(
        self, settings: IngestSettings, metrics: WorkerMetrics, failed: Report,
        subscribed: Callable[[frozenset[int]], None],
    ) -> None:  # fmt: skip
        self._settings, self._metrics, self._failed, self._subscribed = settings, metrics, failed, subscribed
        self._handlers: dict[Channel, Handler] = {}
        self._address = BrokerAddress.parse(settings.mqtt_url)
        self._wanted: frozenset[int] = frozenset()
        self._wanted_changed = asyncio.Event()
        self._outgoing: asyncio.Queue[tuple[str, bytes, int, bool]] = asyncio.Queue(settings.outgoing_messages_max)
        self._outgoing_bytes = 0

    def on(self, channel: Channel, handler: Handler) -> None:
        """Hand the messages of a channel to a handler."""
        assert channel not in self._handlers, channel  # noqa: S101 - a mistake of the programmer
        self._handlers[channel] = handler

    def serve(self, shards: frozenset[int]) -> None:
        """Be subscribed to exactly these shards, as soon as there is a connection."""
        self._wanted = shards
        self._wanted_changed.set()

    def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """Publish when the link is up; forgotten when it is not or too much waits: the gateway will ask again."""
        total = self._outgoing_bytes + len(payload)
        if self._outgoing.full() or total > self._settings.outgoing_bytes_max:
            self._metrics.acks.labels("overflow").inc()
            return
        self._outgoing.put_nowait((topic, payload, qos, retain))
        self._outgoing_bytes = total

    async def flush(self) -> None:
        """Wait until everything handed to `publish` has left."""
        await self._outgoing.join()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._connection()
            except* (aiomqtt.MqttError, OSError) as group:
                reason = str(next(_leaves(group)))
                failures = 0 if time.monotonic() - began > self._settings.reconnect_delay_s_max else failures + 1
                _LOG.warning("broker_lost", broker=self._address.host, reason=reason, failures=failures)
            # A client that fails while it disconnects would hide the cancellation.
            _heed_cancellation()
            self._drop_outgoing()
            delay_s = min(self._settings.reconnect_delay_s_max, 0.1 * 2 ** min(failures, 10))
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads a herd, not a secret

    async def _connection(self) -> None:
        settings = self._settings
        async with self._client() as client, asyncio.TaskGroup() as group:
            _LOG.info("broker_connected", broker=self._address.host, port=self._address.port)
            with self._reported():
                group.create_task(self._subscribe(client), name=f"ingest[{settings.worker_name}].subscriber")
                for number in range(settings.publishers):
                    group.create_task(self._publish(client), name=f"ingest[{settings.worker_name}].publisher.{number}")
                await self._read(client)

    def _client(self) -> aiomqtt.Client:
        settings, address = self._settings, self._address
        newest = settings.mqtt_version == "5"
        options: dict[str, Any] = {"clean_start": True} if newest else {"clean_session": True}
        client = _CheckedClient(
            self._publish_refused,
            hostname=address.host,
            port=address.port,
            username=address.user,
            password=address.password,
            identifier=f"stocktide-ingest-{settings.worker_name}-{random.getrandbits(48):012x}",
            protocol=ProtocolVersion.V5 if newest else ProtocolVersion.V311,
            keepalive=settings.mqtt_keepalive_s,
            tls_context=broker_tls.context(
                address, settings.mqtt_ca_file, settings.mqtt_cert_file, settings.mqtt_key_file
            ),
            max_inflight_messages=1000,
            max_queued_incoming_messages=settings.inbox_frames_max,
            timeout=PUBLISH_TIMEOUT_S,
            socket_options=NO_DELAY,
            **options,
        )
        client.pending_calls_threshold = settings.publishers
        return client

    def _publish_refused(self, reason_code: int) -> None:
        self._metrics.acks.labels("refused").inc()
        _LOG.warning("publish_refused", reason_code=reason_code)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        self._metrics.connected.set(1)
        try:
            yield
        finally:
            self._metrics.connected.set(0)

    async def _subscribe(self, client: aiomqtt.Client) -> None:
        """Keep the subscriptions equal to what is wanted; of the claims, which no broker can shard, all come here."""
        await client.subscribe(topics.claim_filter(), 1)
        served: frozenset[int] = frozenset()
        while True:
            self._wanted_changed.clear()
            wanted = self._wanted
            for shards in _chunks(sorted(served - wanted)):
                await client.unsubscribe([topics.shard_filter(shard) for shard in shards])
            for shards in _chunks(sorted(wanted - served)):
                await client.subscribe([(topics.shard_filter(shard), 1) for shard in shards])
                self._subscribed(frozenset(shards))
            served = wanted
            _heed_cancellation()
            await self._wanted_changed.wait()

    async def _publish(self, client: aiomqtt.Client) -> None:
        while True:
            topic, payload, qos, retain = await self._outgoing.get()
            try:
                await client.publish(topic, payload, qos=qos, retain=retain)
                _heed_cancellation()
                self._metrics.acks.labels("published").inc()
            finally:
                self._outgoing_bytes -= len(payload)
                self._outgoing.task_done()

    async def _read(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            received_ms = time.time_ns() // 1_000_000
            self._dispatch(message.topic.value, message.payload, received_ms, retained=message.retain)

    def _dispatch(self, topic: str, payload: bytes, received_ms: int, *, retained: bool) -> None:
        try:
            parsed = topics.parse(topic)
        except WireError as error:
            self._metrics.frames.labels("bad_topic").inc()
            _LOG.warning("topic_ignored", topic=topic[:200], reason=str(error)[:200])
            return
        handler = self._handlers.get(parsed.channel)
        if handler is None or isinstance(parsed, DeviceTopic):
            return
        if isinstance(parsed, ClaimTopic):
            # No broker can shard claims, so all of them come to every worker.
            if topics.shard(parsed.claim) not in self._wanted:
                return
            sender = parsed.claim
        else:
            sender = parsed.gateway
        try:
            handler(Inbound(sender, parsed.channel, topic, payload, received_ms, retained))
        except Exception as error:  # noqa: BLE001 - one message must not end the link of all gateways
            self._failed(f"link.{parsed.channel}", sender, error)

    def _drop_outgoing(self) -> None:
        """Forget acknowledgements of a broken link: newer ones say more, and the gateways send again anyway."""
        while not self._outgoing.empty():
            _, payload, _, _ = self._outgoing.get_nowait()
            self._outgoing_bytes -= len(payload)
            self._outgoing.task_done()


def _heed_cancellation() -> None:
    """Raise a cancellation of the current task that was swallowed.

    aiomqtt waits with `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that comes together with the
    answer (https://bugs.python.org/issue37658): a worker that was asked to stop would wait for itself for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _chunks(shards: list[int]) -> Iterator[list[int]]:
    """A few filters for each packet: some brokers bound the size of a SUBSCRIBE."""
    for start in range(0, len(shards), FILTERS_PER_SUBSCRIBE):
        yield shards[start : start + FILTERS_PER_SUBSCRIBE]


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error

"""The broker side of a worker: subscriptions for the leased shards, arrivals in, acknowledgements out.

The session is clean and nothing is retained by us: what is in flight when the link breaks is sent again by the
gateways, end to end.

Invariant: this module decides nothing about frames; it hands payloads on and publishes what it is given.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import structlog

from cloud_ingest.context import wall_clock_ms
from cloud_ingest.inbound import Handler, Inbound
from cloud_ingest.mailbox import Report
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
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
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.errors import WireError
from wire_protocol.topics import Channel, ClaimTopic, DeviceTopic

PUBLISH_TIMEOUT_S: Final = 10.0
RECONNECT_DELAY_S: Final = 0.2
FILTERS_PER_SUBSCRIBE: Final = 16
_LOG = structlog.get_logger()


class Link:
    """The connection to the broker, re-established until cancelled.

    `on` registers who takes the messages of a channel. A handler must not wait; one that fails is reported, and the
    next message is handled all the same.

    Args:
        settings: the worker's.
        metrics: the worker's.
        failed: called for a message whose handler raised.
        subscribed: called with shards whose subscriptions the broker has confirmed.
    """

    def __init__(
        self,
        settings: IngestSettings,
        metrics: WorkerMetrics,
        failed: Report,
        subscribed: Callable[[frozenset[int]], None],
    ) -> None:
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
        """Stay connected until cancelled.

        Raises:
            TlsUnusable: the files for TLS cannot be used at the start; later they may be missing for a moment.
        """
        self._options()
        backoff = Backoff(RECONNECT_DELAY_S, self._settings.reconnect_delay_s_max)
        name = f"ingest[{self._settings.worker_name}].contact"
        await stay_connected(partial(self._contact, backoff), partial(self._lost, backoff), backoff, name)

    async def _contact(self, backoff: Backoff) -> None:
        settings = self._settings
        try:
            async with connect(self._options_again()) as connection, asyncio.TaskGroup() as group:
                _LOG.info("broker_connected", broker=self._address.host, port=self._address.port)
                self._metrics.connected.set(1)
                group.create_task(self._steady(backoff), name=f"ingest[{settings.worker_name}].steady")
                group.create_task(self._subscribe(connection), name=f"ingest[{settings.worker_name}].subscriber")
                for number in range(settings.publishers):
                    name = f"ingest[{settings.worker_name}].publisher.{number}"
                    group.create_task(self._publish(connection), name=name)
                async for message in connection.messages():
                    self._dispatch(message.topic, message.payload, wall_clock_ms(), retained=message.retain)
        finally:
            self._metrics.connected.set(0)
            self._drop_outgoing()

    def _lost(self, backoff: Backoff, error: ConnectionLost) -> None:
        _LOG.warning("broker_lost", broker=self._address.host, reason=str(error), failures=backoff.failures + 1)

    async def _steady(self, backoff: Backoff) -> None:
        """A connection that lasts was no failure; a broker that ends each at once is asked ever less often."""
        await asyncio.sleep(self._settings.reconnect_delay_s_max)
        backoff.reset()

    def _options(self) -> ConnectionOptions:
        settings, address = self._settings, self._address
        return ConnectionOptions(
            address=address,
            client_id=f"stocktide-ingest-{settings.worker_name}-{random.getrandbits(48):012x}",
            mqtt_5=settings.mqtt_version == "5",
            keepalive_s=settings.mqtt_keepalive_s,
            timeout_s=PUBLISH_TIMEOUT_S,
            tls=client_context(address, settings.mqtt_ca_file, settings.mqtt_cert_file, settings.mqtt_key_file),
            incoming_max=settings.inbox_frames_max,
            inflight_max=1000,
            calls_max=settings.publishers,
            publish_refused=self._publish_refused,
        )

    def _options_again(self) -> ConnectionOptions:
        try:
            return self._options()
        except TlsUnusable as error:
            raise ConnectionLost(str(error), hint=error.hint) from error

    def _publish_refused(self, reason: str) -> None:
        self._metrics.acks.labels("refused").inc()
        _LOG.warning("publish_refused", reason=reason)

    async def _subscribe(self, connection: Connection) -> None:
        """Keep the subscriptions equal to what is wanted; of the claims, which no broker can shard, all come here."""
        await connection.subscribe(topics.claim_filter())
        served: frozenset[int] = frozenset()
        while True:
            self._wanted_changed.clear()
            wanted = self._wanted
            for shards in _chunks(sorted(served - wanted)):
                await connection.unsubscribe([topics.shard_filter(shard) for shard in shards])
            for shards in _chunks(sorted(wanted - served)):
                await connection.subscribe([(topics.shard_filter(shard), 1) for shard in shards])
                self._subscribed(frozenset(shards))
            served = wanted
            await self._wanted_changed.wait()

    async def _publish(self, connection: Connection) -> None:
        while True:
            topic, payload, qos, retain = await self._outgoing.get()
            try:
                await connection.publish(topic, payload, qos, retain=retain)
                self._metrics.acks.labels("published").inc()
            finally:
                self._outgoing_bytes -= len(payload)
                self._outgoing.task_done()

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
        if retained and not topics.RULES[parsed.channel].retain:
            # Nobody of ours retains it: it is old, and may be there to be taken for new when it is of use.
            self._metrics.refused_items.labels("retained").inc()
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
        """Drop acknowledgements of a broken link: newer ones cover them, and the gateways send again anyway."""
        while not self._outgoing.empty():
            _, payload, _, _ = self._outgoing.get_nowait()
            self._outgoing_bytes -= len(payload)
            self._outgoing.task_done()


def _chunks(shards: list[int]) -> Iterator[list[int]]:
    """A few filters for each packet: some brokers bound the size of a SUBSCRIBE."""
    for start in range(0, len(shards), FILTERS_PER_SUBSCRIBE):
        yield shards[start : start + FILTERS_PER_SUBSCRIBE]

"""A cloud in memory, over a real broker: the production Receiver, without a database. For tests of the edge alone."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from wire_protocol import frames, topics
from wire_protocol.entries import Count, Movement, Reading, validate
from wire_protocol.messages import GatewayStatus, Rejected
from wire_protocol.replication import NO_CURSOR, Cursor, Receiver, Verdict
from wire_protocol.topics import STREAMS, Channel, LinkTopic, Stream


@dataclass
class LoopbackCloud:
    """Merges one gateway's frames and acknowledges them; every knob a test turns is a field."""

    port: int
    gateway: str
    window: int = 16
    answering: bool = True
    clock_ms: Callable[[], int] = lambda: 1_763_700_000_000
    reject: dict[int, str] = field(default_factory=dict)
    entries: dict[Stream, list[Movement | Count | Reading]] = field(default_factory=lambda: {s: [] for s in STREAMS})
    headers: list[frames.FrameHeader] = field(default_factory=list)
    statuses: list[GatewayStatus] = field(default_factory=list)
    frame_bytes: int = 0
    cursors: dict[Stream, Cursor] = field(default_factory=lambda: dict.fromkeys(STREAMS, NO_CURSOR))
    changed: threading.Condition = field(default_factory=threading.Condition)
    _client: Client | None = None

    def __enter__(self) -> Self:
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=f"cloud-{self.gateway}", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.on_connect = lambda client, *_: client.subscribe(
            topics.shard_filter(topics.shard(self.gateway)), qos=1
        )
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", self.port)
        self._client.loop_start()
        assert subscribed.wait(60)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._client is not None
        self._client.disconnect()
        self._client.loop_stop()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait until something that arrived makes the condition true."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), "the cloud waited too long"

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        topic = topics.parse(message.topic)
        if not isinstance(topic, LinkTopic) or topic.gateway != self.gateway:
            return
        with self.changed:
            if topic.channel is Channel.STATUS:
                self._greet(GatewayStatus.decode(bytes(message.payload)))
            elif topic.stream is not None:
                self._merge(topic.stream, bytes(message.payload))
            self.changed.notify_all()

    def _greet(self, status: GatewayStatus) -> None:
        self.statuses.append(status)
        if status.state == "online" and self.answering:
            for stream in STREAMS:
                self._ack(Receiver(self.gateway, stream, status.epoch, self.cursors[stream]), ask=True)

    def _merge(self, stream: Stream, encoded: bytes) -> None:
        if not self.answering:
            return
        frame = frames.decode(encoded)
        receiver = Receiver(self.gateway, stream, frame.header.epoch, self.cursors[stream])
        rejected: list[Rejected] = []
        if receiver.offer(frame.header, frame.digest) is Verdict.MERGE:
            entries, bad = validate(frame.rows)
            assert not bad
            self.entries[stream] += [entry for entry in entries if entry is not None]
            self.headers.append(frame.header)
            self.frame_bytes += len(encoded)
            seqs = range(frame.header.first_seq, frame.header.last_seq + 1)
            rejected = [Rejected(seq=seq, reason=self.reject[seq]) for seq in seqs if seq in self.reject]
        self.cursors[stream] = receiver.cursor
        self._ack(receiver, rejected=rejected)

    def _ack(self, receiver: Receiver, *, rejected: list[Rejected] | None = None, ask: bool = False) -> None:
        ack = receiver.ack(self.clock_ms(), self.window, rejected=rejected or [], ask=ask)
        assert self._client is not None
        with contextlib.suppress(ValueError):
            self._client.publish(topics.link(self.gateway, Channel.ACK), ack.encode(), qos=1)

"""A cloud in memory, over a real broker, that has a site's frames and passes them down. For tests of the edge alone."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from wire_protocol import frames, topics
from wire_protocol.site_messages import LogCursor, SiteFrame, SiteHeads, SiteRequest, pack
from wire_protocol.topics import Channel, LinkTopic

FRAMES_IN_AN_ANSWER = 2


@dataclass
class LoopbackSite:
    """Answers a gateway's requests for the logs of its site, two frames at a time, as a worker does."""

    port: int
    gateway: str
    frames: Sequence[SiteFrame]
    requests: list[SiteRequest] = field(default_factory=list)
    _client: Client | None = None

    def __enter__(self) -> Self:
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=f"cloud-{self.gateway}", protocol=MQTTProtocolVersion.MQTTv5
        )
        subscribed = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe(
            topics.shard_filter(topics.shard(self.gateway)), qos=1
        )
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = self._on_message
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

    def _on_message(self, client: Client, _userdata: Any, message: MQTTMessage) -> None:
        topic = topics.parse(message.topic)
        if not isinstance(topic, LinkTopic) or topic.channel is not Channel.SITE_REQUEST:
            return
        request = SiteRequest.decode(bytes(message.payload))
        self.requests.append(request)
        have = {(log.gateway, log.epoch): log.frame for log in request.logs}
        heads: dict[tuple[str, str], LogCursor] = {}
        wanted = []
        for each in self.frames:
            frame = frames.decode(each.frame)
            log = (each.gateway, frame.header.epoch)
            heads[log] = LogCursor(
                gateway=each.gateway,
                epoch=frame.header.epoch,
                frame=frame.header.frame,
                seq=frame.header.last_seq,
                digest=frame.digest,
            )
            if frame.header.frame > have.get(log, 0):
                wanted.append(each)
        end = SiteHeads(heads=tuple(heads.values()), now_ms=1_790_000_000_000, more=len(wanted) > FRAMES_IN_AN_ANSWER)
        for payload in pack([*(each.encode() for each in wanted[:FRAMES_IN_AN_ANSWER]), end.encode()]):
            client.publish(topics.link(self.gateway, Channel.SITE_LEDGER), payload, qos=1)

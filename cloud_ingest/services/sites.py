"""Sites: what one gateway has shipped goes down to the others of its site, as the sealed frames it came in.

Two ways. A frame that was merged is pushed at once to the site's other gateways, for what it is worth: who is offline
misses it. What decides is the asking: a gateway says how far it has each log, on contact, when it notices a gap, and
now and then; it is sent what follows, and where all logs end.

Invariant: only what is committed is passed on. Invariant: an ask is answered from the asking gateway's own site.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
from cloud_ingest.threads import uninterrupted
from cloud_ingest.waiting import Waiting
from cloud_store.base.errors import StoreError
from cloud_store.merge.arrivals import MergedFrame
from cloud_store.provisioning.sites import Answer, SiteStore
from wire_protocol import topics
from wire_protocol.messages import InvalidMessage
from wire_protocol.site_messages import SiteAsk, SiteFrame, SiteHeads, pack
from wire_protocol.topics import Channel

PEERS_KNOWN_S: Final = 5.0
RETRY_S: Final = 1.0
_LOG = structlog.get_logger()


class Publish(Protocol):
    """Publishes a payload, without waiting."""

    def __call__(self, topic: str, payload: bytes, qos: int = 1) -> None: ...


class Sites:
    """Passes merged frames on and answers gateways that ask."""

    def __init__(
        self,
        settings: IngestSettings,
        store: SiteStore,
        publish: Publish,
        metrics: WorkerMetrics,
    ) -> None:
        self._settings, self._store, self._publish, self._metrics = settings, store, publish, metrics
        self._asks: Waiting[str, SiteAsk] = Waiting(
            messages_max=settings.site_asks_waiting_max, bytes_max=settings.waiting_bytes_max
        )
        self._merged: list[MergedFrame] = []
        self._merged_bytes = 0
        self._peers: dict[int, list[str]] = {}
        self._peers_until = 0.0
        self._work = asyncio.Event()

    def asked(self, gateway: str, payload: bytes) -> None:
        """A gateway asks; the latest ask of each is kept until it is answered."""
        try:
            ask = SiteAsk.decode(payload)
        except InvalidMessage as error:
            _LOG.warning("ask_refused", gateway=gateway, reason=str(error))
            return
        if self._asks.put(gateway, ask, len(payload)):
            self._work.set()

    def merged(self, frames: Sequence[MergedFrame]) -> None:
        """Ledger frames were committed. What does not fit is found by asking."""
        for frame in frames:
            total = self._merged_bytes + len(frame.arrived.payload)
            if len(self._merged) >= self._settings.inbox_frames_max or total > self._settings.waiting_bytes_max:
                break
            self._merged.append(frame)
            self._merged_bytes = total
        self._work.set()

    async def run(self) -> None:
        """Push and answer until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            frames, self._merged, self._merged_bytes = self._merged, [], 0
            try:
                await self._push(frames)
                while self._asks:
                    gateway, ask = next(iter(self._asks.items()))
                    await self._answer(gateway, ask)
                    self._asks.discard(gateway, ask)
            except StoreError as error:
                _LOG.warning("sites_failed", reason=str(error), hint=error.hint)
                self._work.set()
                await asyncio.sleep(RETRY_S)

    async def _push(self, frames: list[MergedFrame]) -> None:
        sites = {frame.site_id for frame in frames}
        if sites and (time.monotonic() > self._peers_until or not sites <= self._peers.keys()):
            self._peers = await uninterrupted(lambda: self._store.peers(sites | self._peers.keys()))
            self._peers_until = time.monotonic() + PEERS_KNOWN_S
        of_site: defaultdict[int, list[MergedFrame]] = defaultdict(list)
        for merged in frames:
            of_site[merged.site_id].append(merged)
        for site_id, news in of_site.items():
            peers = self._peers.get(site_id, [])
            if len(peers) - 1 <= self._settings.site_peers_max:
                self._tell(peers, news)

    def _tell(self, peers: list[str], news: list[MergedFrame]) -> None:
        """Send each gateway of a site what the others have shipped."""
        pieces = [(merged.arrived.gateway, as_passed_down(merged).encode()) for merged in news]
        for peer in peers:
            others = [piece for gateway, piece in pieces if gateway != peer]
            for payload in pack(others):
                # Not guaranteed: a gateway that is slow to take it must not wait behind it for its acknowledgements.
                self._publish(topics.link(peer, Channel.SITE_LEDGER), payload, qos=0)
            self._metrics.site_frames.labels("pushed").inc(len(others))

    async def _answer(self, gateway: str, ask: SiteAsk) -> None:
        bytes_max = self._settings.site_answer_bytes_max
        answer: Answer = await uninterrupted(lambda: self._store.answer(gateway, ask, bytes_max=bytes_max))
        if not answer.known:
            return
        heads = SiteHeads(heads=tuple(answer.heads), now_ms=time.time_ns() // 1_000_000, more=answer.more)
        for payload in pack([*(frame.encode() for frame in answer.frames), heads.encode()]):
            self._publish(topics.link(gateway, Channel.SITE_LEDGER), payload)
        self._metrics.site_frames.labels("asked for").inc(len(answer.frames))


def as_passed_down(merged: MergedFrame) -> SiteFrame:
    """A merged frame as the other gateways of its site get it."""
    arrived = merged.arrived
    return SiteFrame(arrived.gateway, arrived.received_ms, arrived.payload, merged.rejected)

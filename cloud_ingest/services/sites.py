"""Sites: what one gateway has shipped goes down to the others of its site, as the sealed frames it came in.

Two ways. A frame that was merged is pushed at once to the site's other gateways, for what it is worth: one that is
offline misses it. What decides is the request: a gateway says how far it has each log, on contact, when it notices a
gap, and now and then; it is sent what follows, and where all logs end.

Invariant: only what is committed is passed on. Invariant: a request is answered from the gateway's own site.
"""

from collections import defaultdict
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Final

import structlog

from cloud_ingest.context import Context
from cloud_ingest.inbound import Inbound
from cloud_ingest.mailbox import Mailbox, WakeUp
from cloud_store.merge.arrivals import MergedFrame
from cloud_store.provisioning import sites
from wire_protocol import topics
from wire_protocol.messages import InvalidMessage
from wire_protocol.site_messages import SiteFrame, SiteHeads, SiteRequest, pack
from wire_protocol.topics import Channel

PEERS_KNOWN_S: Final = 5.0
_LOG = structlog.get_logger()


class Sites:
    """Passes merged frames on and answers gateways that request frames."""

    def __init__(self, context: Context) -> None:
        self._context, self._database = context, context.database
        settings = context.settings
        self.requests: Mailbox[str, SiteRequest] = context.mailbox("sites", settings.site_asks_waiting_max)
        self._merged: list[MergedFrame] = []
        self._merged_bytes = 0
        self._has_merged = WakeUp("site_frames")
        self._peers: dict[int, list[str]] = {}
        self._peers_until = 0.0

    def requested(self, inbound: Inbound) -> None:
        """A gateway requests what it lacks."""
        try:
            request = SiteRequest.decode(inbound.payload)
        except InvalidMessage as error:
            _LOG.warning("request_refused", service="sites", gateway=inbound.sender, reason=str(error))
        else:
            self.requests.put(inbound.sender, request, len(inbound.payload))

    def merged(self, frames: Sequence[MergedFrame]) -> None:
        """Ledger frames were committed. What does not fit is found by requests."""
        settings = self._context.settings
        for frame in frames:
            total = self._merged_bytes + len(frame.arrived.payload)
            if len(self._merged) >= settings.inbox_frames_max or total > settings.waiting_bytes_max:
                break
            self._merged.append(frame)
            self._merged_bytes = total
        if frames:
            self._has_merged()

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.serve(self._has_merged, self.push)
        yield self._context.serve(self.requests, self.answer)

    async def push(self, _key: None = None, _value: None = None) -> None:
        """Push what was merged to the other gateways of its sites."""
        frames, self._merged, self._merged_bytes = self._merged, [], 0
        of_site: defaultdict[int, list[MergedFrame]] = defaultdict(list)
        for merged in frames:
            of_site[merged.site_id].append(merged)
        if of_site and (self._context.mono_s() > self._peers_until or not of_site.keys() <= self._peers.keys()):
            self._peers = await self._database.run(sites.peers, of_site.keys() | self._peers.keys())
            self._peers_until = self._context.mono_s() + PEERS_KNOWN_S
        for site_id, news in of_site.items():
            peers = self._peers.get(site_id, [])
            if len(peers) - 1 <= self._context.settings.site_peers_max:
                self._pass_on(peers, news)

    def _pass_on(self, peers: list[str], news: list[MergedFrame]) -> None:
        """Send each gateway of a site what the others have shipped."""
        pieces = [(merged.arrived.gateway, as_passed_down(merged).encode()) for merged in news]
        for peer in peers:
            others = [piece for gateway, piece in pieces if gateway != peer]
            for payload in pack(others, self._context.payload_bytes_max()):
                # Not guaranteed: a gateway that is slow to take it must not wait behind it for its acknowledgements.
                self._context.publish(topics.link(peer, Channel.SITE_LEDGER), payload, qos=0)
            self._context.metrics.site_frames.labels("pushed").inc(len(others))

    async def answer(self, gateway: str, request: SiteRequest) -> None:
        """Send a gateway what it lacks."""
        answer = await self._database.run(
            sites.answer, gateway, request, bytes_max=self._context.settings.site_answer_bytes_max
        )
        if not answer.known:
            return
        heads = SiteHeads(heads=tuple(answer.heads), now_ms=self._context.now_ms(), more=answer.more)
        pieces = [*(frame.encode() for frame in answer.frames), heads.encode()]
        for payload in pack(pieces, self._context.payload_bytes_max()):
            self._context.publish(topics.link(gateway, Channel.SITE_LEDGER), payload)
        self._context.metrics.site_frames.labels("asked for").inc(len(answer.frames))


def as_passed_down(merged: MergedFrame) -> SiteFrame:
    """A merged frame as the other gateways of its site get it."""
    arrived = merged.arrived
    return SiteFrame(arrived.gateway, arrived.received_ms, arrived.payload, merged.rejected)

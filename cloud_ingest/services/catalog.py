"""The catalogue: answers gateways that request a page, and notifies those that are online when there is a newer one.

Invariant: bounded. The latest request of each gateway is kept, and the gateways notified per second are bounded.
"""

from collections.abc import Coroutine, Iterator
from typing import Any

import structlog

from cloud_ingest.context import Context
from cloud_ingest.inbound import Inbound
from cloud_ingest.mailbox import Mailbox, WakeUp
from cloud_ingest.token_bucket import TokenBucket
from cloud_store.provisioning import catalog
from wire_protocol import topics
from wire_protocol.catalog import CatalogPage, CatalogPosition, CatalogRequest
from wire_protocol.messages import InvalidMessage
from wire_protocol.topics import Channel

_LOG = structlog.get_logger()


class Catalogs:
    """Passes the catalogue down to the gateways of the shards that this worker serves."""

    def __init__(self, context: Context) -> None:
        self._context, self._database, settings = context, context.database, context.settings
        self._shards: frozenset[int] = frozenset()
        self._requests: Mailbox[str, CatalogRequest] = context.mailbox("catalog", settings.catalog_requests_waiting_max)
        self._outdated: Mailbox[str, int] = context.mailbox("catalog_news", settings.catalog_notices_waiting_max)
        self._notices = TokenBucket(settings.asks_per_s_max, context.mono_s)
        self._heads: dict[int, int] | None = None
        self.wake = WakeUp("catalog")

    def serve(self, shards: frozenset[int]) -> None:
        """Gateways of these shards are answered from here."""
        self._shards = shards

    def requested(self, inbound: Inbound) -> None:
        """A gateway requests what follows its position."""
        try:
            request = CatalogRequest.decode(inbound.payload)
        except InvalidMessage as error:
            _LOG.warning("request_refused", service="catalog", gateway=inbound.sender, reason=str(error))
        else:
            self._requests.put(inbound.sender, request, len(inbound.payload))

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.serve(self._requests, self._answer)
        yield self._context.serve(self.wake, self._compare)
        yield self._context.serve(self._outdated, self._notify, rate=self._notices)

    async def _answer(self, gateway: str, request: CatalogRequest) -> None:
        bytes_max = self._context.payload_bytes_max()
        page = await self._database.run(catalog.page, gateway, request, bytes_max=bytes_max)
        if page is not None:
            self._context.publish(topics.link(gateway, Channel.CATALOG), page.encode())

    async def _compare(self, _key: None, _value: None) -> None:
        """See which catalogues have changed since the last look; at the first look gateways request by themselves."""
        heads, before = await self._database.run(catalog.heads), self._heads
        changed = {tenant for tenant, version in heads.items() if before is not None and before.get(tenant) != version}
        if changed:
            for news in await self._database.run(catalog.changed, changed, self._shards):
                self._outdated.put(news.gateway, news.head)
        self._heads = heads

    async def _notify(self, gateway: str, head: int) -> None:
        """Let a gateway know that there is more."""
        start = CatalogPosition()
        page = CatalogPage(after=start, upto=start, head=head, more=True)
        self._context.publish(topics.link(gateway, Channel.CATALOG), page.encode())

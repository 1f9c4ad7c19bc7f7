"""The catalogue: answers gateways that ask, and tells those that are there when there is something to ask for.

Invariant: bounded. The latest ask of each gateway is kept, a gateway of the registry waits once to be told, and so many
are told per second at most.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from cloud_ingest.settings import IngestSettings
from cloud_ingest.threads import uninterrupted
from cloud_store.base.errors import StoreError
from cloud_store.provisioning.catalog import CatalogStore, News
from wire_protocol import topics
from wire_protocol.catalog import CatalogAsk, CatalogPage, CatalogPosition
from wire_protocol.messages import InvalidMessage
from wire_protocol.topics import Channel

RETRY_S: Final = 1.0
TURNS_PER_S: Final = 10
_LOG = structlog.get_logger()


class Catalogs:
    """Passes the catalogue down to the gateways of the shards that this worker serves."""

    def __init__(self, settings: IngestSettings, store: CatalogStore, publish: Callable[[str, bytes], None]) -> None:
        self._settings, self._store, self._publish = settings, store, publish
        self._shards: frozenset[int] = frozenset()
        self._asks: dict[str, CatalogAsk] = {}
        self._heads: dict[int, int] | None = None
        self._news: list[News] = []
        self._look = False
        self._work = asyncio.Event()

    def serve(self, shards: frozenset[int]) -> None:
        """Gateways of these shards are answered from here."""
        self._shards = shards

    def wake(self) -> None:
        """Some catalogue may have changed."""
        self._look = True
        self._work.set()

    def asked(self, gateway: str, payload: bytes) -> None:
        """A gateway asks; the latest ask of each is kept until it is answered."""
        try:
            ask = CatalogAsk.decode(payload)
        except InvalidMessage as error:
            _LOG.warning("ask_refused", gateway=gateway, reason=str(error))
            return
        if gateway in self._asks or len(self._asks) < self._settings.site_asks_waiting_max:
            self._asks[gateway] = ask
            self._work.set()

    async def run(self) -> None:
        """Answer and tell until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                while self._asks:
                    gateway, ask = next(iter(self._asks.items()))
                    await self._answer(gateway, ask)
                if self._look:
                    self._look = False
                    await self._compare()
                await self._tell()
            except StoreError as error:
                _LOG.warning("catalogs_failed", reason=str(error), hint=error.hint)
                self.wake()
                await asyncio.sleep(RETRY_S)

    async def _answer(self, gateway: str, ask: CatalogAsk) -> None:
        page = await uninterrupted(lambda: self._store.page(gateway, ask))
        if self._asks.get(gateway) is ask:
            del self._asks[gateway]
        if page is not None:
            self._publish(topics.link(gateway, Channel.CATALOG), page.encode())

    async def _compare(self) -> None:
        """See which catalogues have changed since the last look; at the first look gateways ask by themselves."""
        heads, before = await uninterrupted(self._store.heads), self._heads
        if before is None:
            self._heads = heads
            return
        tenants = {tenant for tenant, version in heads.items() if before.get(tenant) != version}
        if tenants:
            told = {news.gateway for news in self._news}
            news = await uninterrupted(lambda: self._store.changed(tenants, self._shards))
            self._news += [each for each in news if each.gateway not in told]
        self._heads = heads  # not before: a database that goes away in between would cost everybody the news

    async def _tell(self) -> None:
        """Tell some gateways that there is more; the rest in the next turns."""
        turn = max(1, self._settings.asks_per_s_max // TURNS_PER_S)
        some, self._news = self._news[:turn], self._news[turn:]
        start = CatalogPosition()
        for gateway, head in some:
            page = CatalogPage(after=start, upto=start, head=head, more=True)
            self._publish(topics.link(gateway, Channel.CATALOG), page.encode())
        if self._news:
            await asyncio.sleep(1 / TURNS_PER_S)
            self._work.set()

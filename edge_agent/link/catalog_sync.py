"""The catalogue on the link: asked for on contact, now and then, and when the cloud says that there is more."""

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from edge_agent.ledger.database import Connection
from edge_agent.ledger.writer import Write
from edge_agent.link.contact import Contact
from edge_agent.provisioning import catalog
from edge_agent.provisioning.catalog import CatalogWriter
from edge_agent.settings import EdgeSettings
from wire_protocol.catalog import CatalogPage, CatalogRequest
from wire_protocol.poll_timer import PollTimer

log = structlog.get_logger("edge_agent.link.uplink")


@dataclass(slots=True)
class CatalogSync:
    """One ledger's catalogue.

    Args:
        reader: a read-only connection to the ledger.
        write: hands a write to the ledger's writer and waits for it.
        settings: as everywhere.
        now_ms: the senders' time.
    """

    reader: Connection
    write: Write
    settings: EdgeSettings
    now_ms: Callable[[], int]
    timer: PollTimer = field(init=False)

    def __post_init__(self) -> None:
        self.timer = PollTimer(interval_ms=round(self.settings.site_ask_interval_s * 1_000))

    def question(self) -> CatalogRequest | None:
        """What to ask the cloud now; None when nothing is due."""
        if not self.timer.due(self.now_ms()):
            return None
        return CatalogRequest(after=catalog.place(self.reader).position)

    async def receive(self, _contact: Contact, payload: bytes) -> None:
        """Part of `Uplink.on`."""
        await self.take(CatalogPage.decode(payload))

    async def take(self, page: CatalogPage) -> None:
        """Take a page, or the news that there is one."""
        at = catalog.place(self.reader).position
        if not page.items and not page.locations and page.more and page.head >= at.version:
            self.timer.poll_now(self.now_ms())
            return
        taken = await self.write(lambda ledger: CatalogWriter(ledger).take(page))
        if taken == "restart":
            log.warning("catalog_read_anew", version=at.version, head=page.head)
        self.timer.answered(self.now_ms(), more=page.more or taken == "restart")

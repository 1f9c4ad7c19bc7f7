"""The catalogue at the gateway: pages come in order, and a cut costs only the page that was under way.

Invariant: a page and the position after it are stored in one transaction.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from wire_protocol.catalog import CatalogItem, CatalogPage, CatalogPosition

Taken: TypeAlias = Literal["taken", "elsewhere", "restart"]


class CatalogProgress(NamedTuple):
    """How far the catalogue was read, and whether that was all at the last look."""

    position: CatalogPosition
    complete: bool


def place(connection: Connection) -> CatalogProgress:
    """How far it was read."""
    version, key, complete = connection.execute(statement("catalog_position")).fetchone()
    return CatalogProgress(CatalogPosition(version=version, key=key), bool(complete))


def items(connection: Connection, sku: str | None = None, *, limit: int) -> Iterator[CatalogItem]:
    """Items in the order of their SKUs, or one."""
    for (body,) in connection.execute(statement("catalog_items"), {"sku": sku, "limit": limit}):
        yield CatalogItem.model_validate_json(body)


def size(connection: Connection) -> tuple[int, int]:
    """How many items and locations are here."""
    found: tuple[int, int] = connection.execute(statement("catalog_size")).fetchone()
    return found


@dataclass(frozen=True, slots=True)
class CatalogWriter:
    """The writing side, inside a transaction of the ledger."""

    ledger: Ledger

    def take(self, page: CatalogPage) -> Taken:
        """Take a page, if it follows what is here.

        Returns:
            Whether it was taken, begins elsewhere, or shows that everything must be read again: the cloud has less than
            was read here.
        """
        connection, at = self.ledger.connection, place(self.ledger.connection).position
        if page.head < at.version:
            connection.execute(statement("forget_items"))
            connection.execute(statement("forget_locations"))
            connection.execute(statement("move_catalog"), (0, "", 0))
            return "restart"
        if page.after != at:
            return "elsewhere"
        rows = [(item.sku, item.model_dump_json(exclude_defaults=True)) for item in page.items]
        connection.executemany(statement("set_item"), rows)
        connection.executemany(statement("set_location"), [(name,) for name in page.locations])
        connection.execute(statement("move_catalog"), (page.upto.version, page.upto.key, int(not page.more)))
        return "taken"

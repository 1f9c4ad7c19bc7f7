"""What is needed to prove that edge and cloud agree: whole tables, read by name. For tests, the demo and support.

Invariant: nothing here writes, and nothing is paged: these are for sites of a size that fits in memory.
"""

from typing import Final, Literal, NamedTuple, TypeAlias

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from cloud_store.merge import cursors
from cloud_store.merge.arrivals import LogKey
from wire_protocol.replication import Cursor
from wire_protocol.stock import Cell, EntryKey

EntryTable: TypeAlias = Literal["movement", "count", "reading"]
_SQL: Final = sql.load("snapshots")


class EntryCount(NamedTuple):
    """Rows stored of one kind from one gateway, and how many different entries (or values) they are."""

    tenant: str
    gateway: str
    table: EntryTable
    rows: int
    distinct: int


def balances(connection: Connection, tenant: str, site: str) -> dict[Cell, int]:
    """On hand of every cell of a site that is not zero, virtual locations included; what `stock.oracle` gives."""
    rows = connection.execute(_SQL["balances"], {"tenant": tenant, "site": site})
    return {Cell(location, sku, lot): on_hand for location, sku, lot, on_hand in rows}


def variances(connection: Connection, tenant: str, site: str) -> dict[EntryKey, int]:
    """The variance of every count of a site."""
    rows = connection.execute(_SQL["variances"], {"tenant": tenant, "site": site})
    return {EntryKey(*key): variance for *key, variance in rows}


def entries(connection: Connection) -> list[EntryCount]:
    """Rows and distinct entries by tenant, gateway and table; of readings, values."""
    return [EntryCount(*row) for row in connection.execute(_SQL["entries"])]


def readings(connection: Connection) -> dict[tuple[str, str], int]:
    """Distinct readings by (tenant, gateway), however many values each has."""
    return {(tenant, gateway): number for tenant, gateway, number in connection.execute(_SQL["readings"])}


def imbalance(connection: Connection) -> dict[tuple[str, str, str], int]:
    """The sum over all locations by (tenant, SKU, lot) where it is not zero; empty means the double entry holds."""
    rows = connection.execute(_SQL["imbalance"])
    return {(tenant, sku, lot): int(total) for tenant, sku, lot, total in rows}


def log_cursors(connection: Connection, gateways: list[str]) -> dict[LogKey, Cursor]:
    """How far each log of some gateways is, those of which something was merged."""
    return cursors.merged(connection, gateways)

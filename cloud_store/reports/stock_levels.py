"""What people read: stock, movements, gateways, totals; in pages.

Invariant: movements can be read only for one named tenant. Every page is bounded.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg.rows import dict_row

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from cloud_store.base.ledger_numbers import MOVEMENT_KINDS
from cloud_store.reports import paging
from cloud_store.reports.paging import RowPage

_KINDS: Final = {number: kind for kind, number in MOVEMENT_KINDS.items()}
_SQL: Final = sql.load("stock_levels")


@dataclass(frozen=True, slots=True, kw_only=True)
class StockFilter:
    """Which balances: all by default, without virtual locations and empty cells. The CLI may leave out the tenant."""

    tenant: str | None = None
    site: str | None = None
    sku: str | None = None
    location: str | None = None
    virtual: bool = False
    zero: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MovementFilter:
    """Which movements of a tenant; times are of the movement, `until` excluded."""

    tenant: str
    site: str | None = None
    sku: str | None = None
    location: str | None = None
    gateway: str | None = None
    kind: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def stock(connection: Connection, wanted: StockFilter, *, limit: int, after: str | None = None) -> RowPage:
    """A page of balances, in the order in which the database knows the cells.

    Raises:
        InvalidCursor: `after` is not from such a page.
    """
    key = paging.decode(after, (int, int, int)) or (0, 0, -1)
    names = ("after_location", "after_item", "after_lot")
    rows = paging.rows(connection, _SQL["stock"], limit, **_fields(wanted), **dict(zip(names, key, strict=True)))
    return RowPage(*paging.cut(rows, limit, ("location_id", "item_id", "lot_id")))


def movements(connection: Connection, wanted: MovementFilter, *, limit: int, after: str | None = None) -> RowPage:
    """A page of a tenant's movements, newest first.

    Raises:
        InvalidCursor: `after` is not from such a page.
    """
    key = paging.decode(after, (datetime, int, int, int)) or (None, 0, 0, 0)
    names = ("after_at", "after_gateway", "after_epoch", "after_seq")
    fields = _fields(wanted)
    fields["kind"] = None if wanted.kind is None else MOVEMENT_KINDS.get(wanted.kind, 0)
    rows = paging.rows(connection, _SQL["movements"], limit, **fields, **dict(zip(names, key, strict=True)))
    for row in rows:
        row["kind"] = _KINDS[row["kind"]]
    return RowPage(*paging.cut(rows, limit, ("at", "gateway_id", "epoch_id", "seq"), keep=("at", "seq")))


def gateways(
    connection: Connection, *, limit: int, tenant: str | None = None, site: str | None = None, after: str | None = None
) -> RowPage:
    """A page of gateways by name, with what they last said and where their streams stand."""
    (name,) = paging.decode(after, (str,)) or ("",)
    rows = paging.rows(connection, _SQL["gateways"], limit, tenant=tenant, site=site, after=name)
    return RowPage(*paging.cut(rows, limit, ("gateway",), keep=("gateway",)))


def totals(connection: Connection) -> dict[str, Any]:
    """One line about the whole cloud."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL["totals"]).fetchone() or {}


def _fields(wanted: StockFilter | MovementFilter) -> dict[str, Any]:
    return {name: getattr(wanted, name) for name in wanted.__slots__}

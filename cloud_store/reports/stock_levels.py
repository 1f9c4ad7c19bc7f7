"""What people read: stock, movements, gateways, totals; in pages.

A page ends with a cursor: the key of its last row, opaque to the reader. Pages by key, not by number, so rows that come
in meanwhile neither repeat nor hide others.

Invariant: movements can be read only for one named tenant. Every page is bounded.
"""

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg.rows import dict_row

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import InvalidCursor, UnknownName
from cloud_store.merge.ledger_rows import MOVEMENT_KINDS

PAGE_ROWS_MAX: Final = 1_000
_KINDS: Final = {number: kind for kind, number in MOVEMENT_KINDS.items()}
_SQL: Final = sql.load("stock_levels")


class RowPage(NamedTuple):
    """Rows, and where the next page begins; None when this is the last."""

    rows: list[dict[str, Any]]
    after: str | None


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
    key = _decode(after, (int, int, int)) or (0, 0, -1)
    names = ("after_location", "after_item", "after_lot")
    rows = _rows(connection, "stock", limit, **_fields(wanted), **dict(zip(names, key, strict=True)))
    return RowPage(*_cut(rows, limit, ("location_id", "item_id", "lot_id")))


def movements(connection: Connection, wanted: MovementFilter, *, limit: int, after: str | None = None) -> RowPage:
    """A page of a tenant's movements, newest first.

    Raises:
        InvalidCursor: `after` is not from such a page.
    """
    key = _decode(after, (datetime, int, int, int)) or (None, 0, 0, 0)
    names = ("after_at", "after_gateway", "after_epoch", "after_seq")
    fields = _fields(wanted)
    fields["kind"] = None if wanted.kind is None else MOVEMENT_KINDS.get(wanted.kind, 0)
    rows = _rows(connection, "movements", limit, **fields, **dict(zip(names, key, strict=True)))
    for row in rows:
        row["kind"] = _KINDS[row["kind"]]
    return RowPage(*_cut(rows, limit, ("at", "gateway_id", "epoch_id", "seq"), keep=("at", "seq")))


def gateways(
    connection: Connection, *, limit: int, tenant: str | None = None, site: str | None = None, after: str | None = None
) -> RowPage:
    """A page of gateways by name, with what they last said and where their streams stand."""
    (name,) = _decode(after, (str,)) or ("",)
    rows = _rows(connection, "gateways", limit, tenant=tenant, site=site, after=name)
    return RowPage(*_cut(rows, limit, ("gateway",), keep=("gateway",)))


def require_tenant(connection: Connection, tenant: str) -> None:
    """Tell nothing from something that is empty.

    Raises:
        UnknownName: there is no such tenant.
    """
    row = connection.execute(_SQL["tenant_exists"], {"tenant": tenant}).fetchone()
    if not (row and row[0]):
        raise UnknownName(f"There is no tenant {tenant}.", hint="stocktide cloud tenant list")


def totals(connection: Connection) -> dict[str, Any]:
    """One line about the whole cloud."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL["totals"]).fetchone() or {}


def _rows(connection: Connection, statement: str, limit: int, **parameters: Any) -> list[dict[str, Any]]:
    """One row more than the page has: it tells whether there is a next page."""
    with connection.cursor(row_factory=dict_row) as cursor:
        bounded = min(max(1, limit), PAGE_ROWS_MAX) + 1
        return cursor.execute(_SQL[statement], {**parameters, "limit": bounded}).fetchall()


def _cut(
    rows: list[dict[str, Any]], limit: int, key: tuple[str, ...], keep: tuple[str, ...] = ()
) -> tuple[list[dict[str, Any]], str | None]:
    """Cut the extra row off, make the cursor, and hide the ids that only it needs."""
    size = min(max(1, limit), PAGE_ROWS_MAX)
    after = _encode([rows[size - 1][name] for name in key]) if len(rows) > size else None
    hidden = [name for name in key if name not in keep]
    for row in rows:
        for name in hidden:
            del row[name]
    return rows[:size], after


def _encode(key: list[Any]) -> str:
    text = json.dumps(key, default=lambda value: value.isoformat(), separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(after: str | None, types: tuple[type, ...]) -> tuple[Any, ...] | None:
    if after is None:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)))
        return tuple(_part(part, wanted) for part, wanted in zip(key, types, strict=True))
    except (ValueError, TypeError):
        raise InvalidCursor("This page cursor is not one of ours.", hint="Begin without one.") from None


def _part(part: Any, wanted: type) -> Any:
    """One part of a key, as the database can take it; the cursor comes from outside and may be forged."""
    if wanted is datetime:
        at = datetime.fromisoformat(part)
        if at.tzinfo is None:
            raise ValueError(part)
        return at
    if type(part) is not wanted:
        raise TypeError(part)
    if (isinstance(part, str) and not part.isprintable()) or (isinstance(part, int) and not 0 <= part < 1 << 63):
        raise ValueError(part)
    return part


def _fields(wanted: StockFilter | MovementFilter) -> dict[str, Any]:
    return {name: getattr(wanted, name) for name in wanted.__slots__}

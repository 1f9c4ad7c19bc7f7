"""What a tenant has registered, and what an operator must look at: items, sites, locations, alarms; in pages."""

from typing import Final

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from cloud_store.reports import paging
from cloud_store.reports.paging import RowPage

_SQL: Final = sql.load("listings")
_AFTER_ALL: Final = (1 << 63) - 1


def items(
    connection: Connection, tenant: str, *, limit: int, after: str | None = None, part: str | None = None
) -> RowPage:
    """Items by SKU; `part` is looked for in SKU, name and GTIN.

    Raises:
        InvalidCursor: `after` is not from such a page.
    """
    (sku,) = paging.decode(after, (str,)) or ("",)
    rows = paging.rows(connection, _SQL["items"], limit, tenant=tenant, after=sku, part=_pattern(part))
    return RowPage(*paging.cut(rows, limit, ("sku",), keep=("sku",)))


def sites(connection: Connection, tenant: str, *, limit: int, after: str | None = None) -> RowPage:
    """Sites by name."""
    (site,) = paging.decode(after, (str,)) or ("",)
    rows = paging.rows(connection, _SQL["sites"], limit, tenant=tenant, after=site)
    return RowPage(*paging.cut(rows, limit, ("site",), keep=("site",)))


def locations(
    connection: Connection,
    tenant: str,
    *,
    limit: int,
    after: str | None = None,
    site: str | None = None,
    part: str | None = None,
    virtual: bool = False,
) -> RowPage:
    """Locations by site and name; a stub is one that only scans have mentioned."""
    after_site, after_location = paging.decode(after, (str, str)) or ("", "")
    rows = paging.rows(
        connection,
        _SQL["locations"],
        limit,
        tenant=tenant,
        site=site,
        virtual=virtual,
        part=_pattern(part),
        after_site=after_site,
        after_location=after_location,
    )
    return RowPage(*paging.cut(rows, limit, ("site", "location"), keep=("site", "location")))


def alarms(
    connection: Connection, tenant: str, *, limit: int, after: str | None = None, cleared: bool = False
) -> RowPage:
    """Alarms, the latest first; those that were cleared too if wanted."""
    (before,) = paging.decode(after, (int,)) or (_AFTER_ALL,)
    rows = paging.rows(connection, _SQL["alarms"], limit, tenant=tenant, before=before, cleared=cleared)
    return RowPage(*paging.cut(rows, limit, ("alarm_id",)))


def _pattern(part: str | None) -> str | None:
    """A pattern of SQL that looks for a text as it is."""
    if part is None:
        return None
    quoted = part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{quoted}%"

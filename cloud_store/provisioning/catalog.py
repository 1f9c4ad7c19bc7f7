"""The catalogue for gateways: pages of what has changed.

Invariant: a gateway is given items of its own tenant and locations of its own site; which these are, the registry says.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from wire_protocol.catalog import (
    PAGE_BYTES_TARGET,
    PAGE_ENTRIES_MAX,
    CatalogItem,
    CatalogPage,
    CatalogPosition,
    CatalogRequest,
)

_SQL: Final = sql.load("catalog")
ENVELOPE_BYTES: Final = 1024  # of a page, beside its items and locations
_LAST: Final = "\U0010ffff"  # after every name, in the order of bytes


class News(NamedTuple):
    """A gateway that is there, and the version that its tenant's catalogue has now."""

    gateway: str
    head: int


def page(
    connection: Connection, gateway: str, ask: CatalogRequest, *, bytes_max: int = PAGE_BYTES_TARGET
) -> CatalogPage | None:
    """What follows a position, as much as fits a page and `bytes_max`; None for an unknown or inactive gateway."""
    after = ask.after
    kind, word = after.key[:1], after.key[1:]
    parameters = {
        "gateway": gateway,
        "version": after.version,
        # Items come before locations of the same version.
        "sku": _LAST if kind == "l" else word,
        "location": word if kind == "l" else "",
        "limit": PAGE_ENTRIES_MAX + 1,
    }
    rows = connection.execute(_SQL["page"], parameters).fetchall()
    if not rows:
        return None
    target = min(PAGE_BYTES_TARGET, bytes_max - ENVELOPE_BYTES)
    return _page(after, rows[0][0], [row[1:] for row in rows if row[1] is not None], target)


def heads(connection: Connection) -> dict[int, int]:
    """The version of each tenant's catalogue."""
    return dict(connection.execute(_SQL["heads"]).fetchall())


def changed(connection: Connection, tenants: Iterable[int], shards: Iterable[int]) -> list[News]:
    """The gateways of some tenants and shards that are there."""
    parameters = {"tenants": sorted(tenants), "shards": sorted(shards)}
    return [News(*row) for row in connection.execute(_SQL["changed"], parameters)]


def _page(
    after: CatalogPosition, head: int, rows: list[tuple[int, str, str, Mapping[str, Any] | None]], bytes_target: int
) -> CatalogPage:
    items: list[CatalogItem] = []
    locations: list[str] = []
    upto, size = after, 0
    for version, kind, word, body in rows[:PAGE_ENTRIES_MAX]:
        if body is None:
            size += len(word.encode()) + 4
            locations.append(word)
        else:
            item = CatalogItem.model_validate({name: body[name] for name in CatalogItem.model_fields})
            size += len(item.model_dump_json().encode()) + 1
            items.append(item)
        if size > bytes_target and (items or locations)[1:]:
            (items if body is not None else locations).pop()
            break
        upto = CatalogPosition(version=version, key=kind + word)
    more = len(items) + len(locations) < len(rows)
    return CatalogPage(after=after, upto=upto, head=head, items=tuple(items), locations=tuple(locations), more=more)

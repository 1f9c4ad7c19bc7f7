"""The registry: tenants, sites, gateways and items, as operators add and list them.

Invariant: which tenant and site a gateway belongs to is written here once and never taken from a topic or payload.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from psycopg.rows import dict_row

from cloud_store.base import audit_log, gateways, sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import AlreadyExists, unknown_gateway, unknown_site, unknown_tenant
from cloud_store.tenancy import quotas
from cloud_store.tenancy.catalog_door import require_item
from wire_protocol import names, topics
from wire_protocol.catalog import CatalogItem
from wire_protocol.errors import InvalidName

PAGE_ROWS: Final = 1000
_ITEM_COLUMNS: Final = frozenset(CatalogItem.model_fields) - {"sku"}
_SQL: Final = sql.load("registry")


def add_tenant(connection: Connection, tenant: str) -> None:
    """Register a tenant."""
    with connection.transaction():
        row = _one(connection, "add_tenant", name=names.slug(tenant, "tenant"))
        if row is None:
            raise AlreadyExists(f"Tenant {tenant} already exists.")
        audit_log.record(connection, "tenant.add", tenant, tenant_id=row[0])


def add_site(connection: Connection, tenant: str, site: str) -> None:
    """Register a site of a tenant."""
    with connection.transaction():
        number = tenant_id(connection, tenant)
        if not _one(connection, "add_site", tenant_id=number, name=names.slug(site, "site")):
            raise AlreadyExists(f"Site {site} of {tenant} already exists.")
        audit_log.record(connection, "site.add", site, tenant_id=number)


def add_gateway(connection: Connection, tenant: str, site: str, gateway: str) -> None:
    """Register a gateway at a site; its name is unique across tenants.

    Raises:
        QuotaExceeded: the tenant has as many gateways as it may.
    """
    with connection.transaction():
        number = tenant_id(connection, tenant)
        site_row = _one(connection, "site_id", tenant=tenant, site=site)
        if site_row is None:
            raise unknown_site(tenant, site)
        name = names.gateway(gateway)
        quotas.require_room(connection, number, "gateways")
        row = _one(
            connection,
            "add_gateway",
            tenant_id=number,
            site_id=site_row[0],
            name=name,
            shard=topics.shard(name),
        )
        if row is None:
            raise AlreadyExists(f"Gateway {gateway} already exists.", hint="Gateway names are unique across tenants.")
        audit_log.record(connection, "gateway.add", name, tenant_id=number, site=site)


def add_device(connection: Connection, gateway: str, device: str) -> None:
    """Register a device of a gateway before its first scan.

    Raises:
        QuotaExceeded: the tenant has as many devices as it may. A device that a ledger entry names is taken all the
            same, because the goods exist; it counts from then on.
    """
    with connection.transaction():
        known = gateways.named(connection, [gateway]).get(gateway)
        if known is None:
            raise unknown_gateway(gateway)
        name = names.device(device)
        if _one(connection, "device", gateway_id=known.gateway_id, name=name):
            raise AlreadyExists(f"Device {name} of {gateway} already exists.")
        quotas.require_room(connection, known.tenant_id, "devices")
        _one(connection, "add_device", gateway_id=known.gateway_id, name=name)
        audit_log.record(connection, "device.add", name, tenant_id=known.tenant_id, gateway=gateway)


def devices(connection: Connection, tenant: str | None = None) -> list[dict[str, Any]]:
    """All devices that are registered or were seen in a ledger, or those of a tenant."""
    return _all(connection, "devices", tenant=tenant)


def set_gateway_state(connection: Connection, gateway: str, state: Literal["active", "disabled"]) -> None:
    """Allow or refuse what a gateway sends, from the next batch on."""
    with connection.transaction():
        row = _one(connection, "set_gateway_state", gateway=gateway, state=state)
        if row is None:
            raise unknown_gateway(gateway)
        audit_log.record(connection, f"gateway.{state}", gateway, tenant_id=row[0])


def add_items(
    connection: Connection,
    tenant: str,
    items: Iterable[CatalogItem],
    *,
    replace: bool = False,
    columns: Collection[str] = _ITEM_COLUMNS,
) -> int:
    """Register items, all or none; those that exist are left alone unless `replace`. Stubs become real items.

    Args:
        connection: as an administrator.
        tenant: whose.
        items: each SKU once.
        replace: change items that exist.
        columns: the fields that were given; of an item that exists the others stay as they are.

    Returns:
        How many were added or changed.

    Raises:
        InvalidName: a name or a GTIN cannot be used, or two items have the same GTIN.
    """
    with connection.transaction(), connection.cursor() as cursor:
        number = tenant_id(connection, tenant)
        ordered = sorted(map(require_item, items), key=lambda item: item.sku)
        if not ordered:
            return 0
        if replace:
            ordered = _with_the_rest(connection, number, ordered, columns)
        keys = {"tenant_id": number, "replace": replace, "catalog_version": _next_version(connection, number)}
        cursor.executemany(_SQL["add_item"], [item.model_dump() | keys for item in ordered])
        changed = cursor.rowcount
        _require_own_gtins(connection, number, ordered)
        if changed:
            subject = ordered[0].sku if changed == len(ordered) == 1 else f"{changed} items"
            audit_log.record(connection, "item.add", subject, tenant_id=number, replace=replace)
        return changed


def _with_the_rest(
    connection: Connection, tenant: int, items: Sequence[CatalogItem], columns: Collection[str]
) -> list[CatalogItem]:
    """Items with the fields that were not given as they are."""
    rest = [name for name in _ITEM_COLUMNS if name not in columns]
    if not rest:
        return list(items)
    rows = _all(connection, "items_named", tenant_id=tenant, skus=[item.sku for item in items])
    known = {row["sku"]: {name: row[name] for name in rest} for row in rows}
    return [item.model_copy(update=known.get(item.sku, {})) for item in items]


def _require_own_gtins(connection: Connection, tenant: int, items: Sequence[CatalogItem]) -> None:
    """Refuse a GTIN that two items have, also one as UPC and one as EAN: a scan could mean either."""
    gtins = [item.gtin for item in items if item.gtin is not None]
    if gtins and (row := _one(connection, "shared_gtin", tenant_id=tenant, gtins=gtins)) is not None:
        raise InvalidName(
            f"The GTIN {row[0]} is that of {' and '.join(row[1][:2])}.",
            hint="Give one of them another GTIN, or none (item import --replace, column gtin).",
        )


def add_locations(connection: Connection, tenant: str, site: str, locations: Iterable[str]) -> int:
    """Register shelves of a site, all or none. Returns how many are new in the catalogue.

    Raises:
        InvalidName: one is none, or virtual.
        UnknownName: there is no such tenant or site.
    """
    wanted = sorted({names.image_store(location) for location in locations})
    with connection.transaction(), connection.cursor() as cursor:
        number = tenant_id(connection, tenant)
        site_row = _one(connection, "site_id", tenant=tenant, site=site)
        if site_row is None:
            raise unknown_site(tenant, site)
        version = _next_version(connection, number)
        rows = [{"site_id": site_row[0], "name": name, "catalog_version": version} for name in wanted]
        cursor.executemany(_SQL["add_location"], rows)
        if added := cursor.rowcount if rows else 0:
            audit_log.record(connection, "location.add", f"{added} locations of {site}", tenant_id=number)
        return added


def locations(connection: Connection, tenant: str | None = None, site: str | None = None) -> list[dict[str, Any]]:
    """All shelves that are known; a stub is one that only scans have mentioned."""
    return _all(connection, "locations", tenant=tenant, site=site)


def tenants(connection: Connection) -> list[dict[str, Any]]:
    """All tenants with the number of their sites, gateways and items."""
    return _all(connection, "tenants")


def sites(connection: Connection, tenant: str | None = None) -> list[dict[str, Any]]:
    """All sites, or those of a tenant."""
    return _all(connection, "sites", tenant=tenant)


def items(connection: Connection, tenant: str | None = None) -> Iterator[dict[str, Any]]:
    """All items, or those of a tenant, read in pages."""
    after: Mapping[str, Any] = {"after_tenant": 0, "after_sku": ""}
    while page := _all(connection, "items", tenant=tenant, limit=PAGE_ROWS, **after):
        for row in page:
            after = {"after_tenant": row.pop("tenant_id"), "after_sku": row["sku"]}
            yield row


def _next_version(connection: Connection, tenant: int) -> int:
    row = _one(connection, "next_catalog_version", tenant_id=tenant)
    assert row is not None  # noqa: S101 - an upsert returns its row
    number: int = row[0]
    return number


def tenant_id(connection: Connection, tenant: str) -> int:
    """The id of a tenant.

    Raises:
        UnknownName: there is none of that name.
    """
    row = _one(connection, "tenant_id", tenant=tenant)
    if row is None:
        raise unknown_tenant(tenant)
    number: int = row[0]
    return number


def require(connection: Connection, tenant: str | None, site: str | None = None) -> None:
    """Tell a filter that finds nothing from one that is misspelt; None is no filter.

    Raises:
        UnknownName: there is no such tenant, or it has no such site.
    """
    if tenant is not None:
        tenant_id(connection, tenant)
        if site is not None and _one(connection, "site_id", tenant=tenant, site=site) is None:
            raise unknown_site(tenant, site)


def _one(connection: Connection, statement: str, **parameters: Any) -> tuple[Any, ...] | None:
    return connection.execute(_SQL[statement], parameters).fetchone()


def _all(connection: Connection, statement: str, **parameters: Any) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL[statement], parameters).fetchall()

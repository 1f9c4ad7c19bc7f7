"""`stocktide cloud tenant|site|gateway|item`: the registry on the command line."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloud_cli.options import DatabaseUrl, Json, Site, Tenant, TheTenant, database
from cloud_ingest.defaults import DATABASE_URL
from command_line.output import emit_json, listing

if TYPE_CHECKING:
    from wire_protocol.catalog import CatalogItem

tenant_app = typer.Typer(no_args_is_help=True, help="Tenants.")
site_app = typer.Typer(no_args_is_help=True, help="Sites of tenants.")
gateway_app = typer.Typer(no_args_is_help=True, help="Gateways at sites.")
location_app = typer.Typer(no_args_is_help=True, help="Locations of sites.")
item_app = typer.Typer(no_args_is_help=True, help="Items of tenants.")

CATALOG_BYTES_MAX: Final = 64 * 1024 * 1024
_COLUMNS: Final = (
    "sku",
    "name",
    "gtin",
    "unit",
    "scale",
    "reorder_point",
    "lot_tracked",
    "serial_tracked",
    "expiry_tracked",
    "retired",
)
_NUMBERS: Final = ("scale", "reorder_point")
_TRUTHS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Track(StrEnum):
    """What may be noted of each piece of an item."""

    LOT = "lot"
    SERIAL = "serial"
    EXPIRY = "expiry"


def done(sentence: str, document: dict[str, Any], *, json_: bool) -> None:
    """Say what was done, as a sentence or as a document."""
    if json_:
        emit_json(document)
    else:
        typer.echo(sentence)


@tenant_app.command("add")
def add_tenant(name: str, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Register a tenant."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        registry.add_tenant(connection, name)
    done(f"tenant {name} added", {"tenant": name}, json_=json_)


@tenant_app.command("list")
def list_tenants(database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """List tenants."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        rows = registry.tenants(connection)
    numbers = ("sites", "gateways", "items")
    listing(rows, ("name", *numbers, "created_at"), json_=json_, numbers=numbers, empty="No tenants yet.")


@site_app.command("add")
def add_site(name: str, tenant: TheTenant, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Register a site of a tenant."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        registry.add_site(connection, tenant, name)
    done(f"site {name} of {tenant} added", {"tenant": tenant, "site": name}, json_=json_)


@site_app.command("list")
def list_sites(database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, json_: Json = False) -> None:
    """List sites."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        rows = registry.sites(connection, tenant)
    columns = ("tenant", "name", "gateways", "created_at")
    listing(rows, columns, json_=json_, numbers=("gateways",), empty="No sites yet.")


@gateway_app.command("add")
def add_gateway(
    name: str,
    tenant: TheTenant,
    site: Annotated[str, typer.Option("--site", "-s", help="The site.")],
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Register a gateway at a site. Its name is unique across all tenants."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        registry.add_gateway(connection, tenant, site, name)
    document = {"tenant": tenant, "site": site, "gateway": name}
    done(f"gateway {name} added at {site} of {tenant}", document, json_=json_)


@gateway_app.command("list")
def list_gateways(
    database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, site: Site = None, json_: Json = False
) -> None:
    """List gateways with what they last said."""
    from cloud_store.reports import stock_levels
    from cloud_store.reports.paging import PAGE_ROWS_MAX

    rows: list[dict[str, Any]] = []
    after: str | None = None
    with database(database_url) as connection:
        while True:
            page = stock_levels.gateways(connection, limit=PAGE_ROWS_MAX, tenant=tenant, site=site, after=after)
            rows += page.rows
            after = page.after
            if after is None:
                break
    for row in rows:
        row["stock"] = "differs" if row["stock_differs"] else "proved" if row["stock_proved_at"] else None
    columns = ("tenant", "site", "gateway", "registered", "state", "version", "backlog", "stock", "heard_at")
    listing(rows, columns, json_=json_, numbers=("backlog",), empty="No gateways yet.")


@gateway_app.command("disable")
def disable_gateway(name: str, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Refuse everything a gateway sends, from its next frame on."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        registry.set_gateway_state(connection, name, "disabled")
    done(f"gateway {name} is disabled", {"gateway": name, "state": "disabled"}, json_=json_)


@gateway_app.command("enable")
def enable_gateway(name: str, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Let a disabled gateway send again; workers notice within seconds."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        registry.set_gateway_state(connection, name, "active")
    done(f"gateway {name} is enabled", {"gateway": name, "state": "active"}, json_=json_)


@location_app.command("add")
def add_locations(
    locations: Annotated[list[str], typer.Argument(metavar="NAME…", help="Shelves, bins, docks.")],
    tenant: TheTenant,
    site: Annotated[str, typer.Option("--site", "-s", help="The site.")],
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Register locations of a site; its gateways get to know them."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        added = registry.add_locations(connection, tenant, site, locations)
    done(f"{added} of {len(locations)} locations are new", {"given": len(locations), "added": added}, json_=json_)


@location_app.command("list")
def list_locations(
    database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, site: Site = None, json_: Json = False
) -> None:
    """List locations; a stub is one that only scans have mentioned."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        rows = registry.locations(connection, tenant, site)
    listing(rows, ("tenant", "site", "name", "stub"), json_=json_, empty="No locations yet.")


@item_app.command("add")
def add_item(
    sku: str,
    tenant: TheTenant,
    name: Annotated[str | None, typer.Option(help="What people call it.")] = None,
    gtin: Annotated[str | None, typer.Option(help="Barcode number, 8 to 14 digits.")] = None,
    unit: Annotated[str, typer.Option(help="Unit of its quantities.")] = "piece",
    scale: Annotated[int, typer.Option(min=0, max=6, help="Quantities count 1/10^scale of the unit.")] = 0,
    reorder_point: Annotated[int | None, typer.Option("--reorder-at", min=0, help="Order more below this.")] = None,
    track: Annotated[list[Track] | None, typer.Option("--track", help="What is noted of each piece.")] = None,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Register an item; a stub that scans have created becomes a real one."""
    from cloud_cli.errors import InvalidCatalog
    from cloud_store.tenancy import registry

    tracked = {f"{each.value}_tracked": True for each in track or []}
    given = {"sku": sku, "name": name, "gtin": gtin, "unit": unit, "scale": scale, "reorder_point": reorder_point}
    item = _item(given | tracked, "the item")
    with database(database_url) as connection:
        if not registry.add_items(connection, tenant, [item]):
            raise InvalidCatalog(
                f"Item {sku} of {tenant} already exists.", hint="Change it with `item import --replace`."
            )
    done(f"item {sku} of {tenant} added", {"tenant": tenant, "sku": sku}, json_=json_)


@item_app.command("list")
def list_items(database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, json_: Json = False) -> None:
    """List items."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        rows = list(registry.items(connection, tenant))
    columns = ("tenant", "sku", "name", "gtin", "unit", "scale", "reorder_point", "retired", "stub")
    listing(rows, columns, json_=json_, numbers=_NUMBERS, empty="No items yet.")


@item_app.command("import")
def import_items(
    file: Annotated[Path, typer.Argument(help="CSV with a header: sku, and any other column of `item list`.")],
    tenant: TheTenant,
    replace: Annotated[bool, typer.Option("--replace", help="Change items that exist.")] = False,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Register the items of a CSV file, all or none."""
    from cloud_store.tenancy import registry

    items = list(_read_catalog(file))
    with database(database_url) as connection:
        changed = registry.add_items(connection, tenant, items, replace=replace)
    document = {"tenant": tenant, "read": len(items), "changed": changed}
    done(f"{changed} of {len(items)} items added or changed", document, json_=json_)


def _read_catalog(file: Path) -> "Iterator[CatalogItem]":
    import csv

    from cloud_cli.errors import InvalidCatalog

    try:
        if file.stat().st_size > CATALOG_BYTES_MAX:
            raise InvalidCatalog(f"{file} is larger than {CATALOG_BYTES_MAX} bytes.", hint="Import it in parts.")
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines, strict=True)
            if "sku" not in (rows.fieldnames or ()) or set(rows.fieldnames or ()) - set(_COLUMNS):
                raise InvalidCatalog(f"{file} needs the column sku.", hint=f"Known columns: {', '.join(_COLUMNS)}.")
            for row in rows:
                yield _item({name: value or None for name, value in row.items()}, f"{file}:{rows.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidCatalog(f"{file} cannot be read: {error}") from None


def _item(fields: dict[str, Any], where: str) -> "CatalogItem":
    from pydantic import ValidationError

    from cloud_cli.errors import InvalidCatalog
    from wire_protocol.catalog import CatalogItem
    from wire_protocol.problems import first_problem

    given = {name: value for name, value in fields.items() if value is not None}
    try:
        given |= {name: int(given[name]) for name in _NUMBERS if name in given}
        given |= {
            name: _TRUTHS.get(str(value).lower(), value)
            for name, value in given.items()
            if name.endswith("_tracked") or name == "retired"
        }
        return CatalogItem.model_validate(given)
    except ValidationError as error:
        raise InvalidCatalog(f"{where}: {first_problem(error)}") from None
    except (TypeError, ValueError) as error:
        raise InvalidCatalog(f"{where}: {error}") from None

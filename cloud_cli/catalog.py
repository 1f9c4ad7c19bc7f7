"""`stocktide cloud item|location`: the catalogue on the command line, and what it is read from."""

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloud_cli.options import DatabaseUrl, Json, Site, Tenant, TheTenant, database
from cloud_cli.registry import done
from cloud_ingest.defaults import DATABASE_URL
from command_line.output import FAILED, listing
from command_line.streams import say, writes

if TYPE_CHECKING:
    from cloud_store.tenancy.merged_names import Noun
    from wire_protocol.catalog import CatalogItem

location_app = typer.Typer(no_args_is_help=True, help="Locations of sites.")
item_app = typer.Typer(no_args_is_help=True, help="Items of tenants.")

COLUMNS: Final = (
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
NUMBERS: Final = ("scale", "reorder_point")
_WORDS: Final = ("sku", "name", "gtin", "unit")
_TRUTHS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_WHOLE_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_ROUNDED: Final = re.compile(r"[0-9][.,][0-9]+[Ee][+]?[0-9]+")


class Track(StrEnum):
    """What may be noted of each piece of an item."""

    LOT = "lot"
    SERIAL = "serial"
    EXPIRY = "expiry"


@location_app.command("add")
@writes
def add_locations(
    locations: Annotated[list[str], typer.Argument(metavar="NAME…", help="Shelves, bins, docks.")],
    tenant: TheTenant,
    site: Annotated[str, typer.Option("--site", "-s", help="The site.")],
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Register locations of a site; its gateways get to know them."""
    from cloud_store.tenancy import registry
    from wire_protocol import names

    with database(database_url) as connection:
        added = registry.add_locations(connection, tenant, site, [names.respelt(each) for each in locations])
    done(f"{added} of {len(locations)} locations are new", {"given": len(locations), "added": added}, json_=json_)


@location_app.command("import")
@writes
def import_locations(
    file: Annotated[Path, typer.Argument(help="CSV with a header: name.")],
    tenant: TheTenant,
    site: Annotated[str, typer.Option("--site", "-s", help="The site.")],
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Register the locations of a CSV file, all or none."""
    from cloud_cli.errors import InvalidCatalog
    from cloud_store.tenancy import registry
    from command_line import tables
    from wire_protocol import names
    from wire_protocol.errors import InvalidName

    table = tables.read(file, ("name",), required=("name",), mend=names.respelt)
    for row in table.rows:
        try:
            names.image_store(row.cells["name"] or "")
        except InvalidName as error:
            raise InvalidCatalog(f"{row.where}: {error}", hint=error.hint) from None
    wanted = [row.cells["name"] or "" for row in table.rows]
    with database(database_url) as connection:
        added = registry.add_locations(connection, tenant, site, wanted)
    document = {"tenant": tenant, "site": site, "read": len(wanted), "added": added}
    done(f"{added} of {len(wanted)} locations are new", document, json_=json_)


@location_app.command("list")
def list_locations(
    database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, site: Site = None, json_: Json = False
) -> None:
    """List locations; a stub is one that only scans have mentioned."""
    from cloud_store.tenancy import registry

    with database(database_url, tenant, site) as connection:
        rows = registry.locations(connection, tenant, site)
    listing(rows, ("tenant", "site", "name", "stub", "merged_into"), json_=json_, empty="No locations yet.")


@location_app.command("clashes")
def location_clashes(
    database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, site: Site = None, json_: Json = False
) -> None:
    """List locations whose names look the same to people and are not. Ends with 1 when there are some."""
    from cloud_store.tenancy import registry

    with database(database_url, tenant, site) as connection:
        rows = registry.locations(connection, tenant, site)
    _show_clashes("location", rows, ("tenant", "site"), "name", json_=json_)


@item_app.command("clashes")
def item_clashes(database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, json_: Json = False) -> None:
    """List items whose SKUs look the same to people and are not. Ends with 1 when there are some."""
    from cloud_store.tenancy import registry

    with database(database_url, tenant) as connection:
        _show_clashes("item", registry.items(connection, tenant), ("tenant",), "sku", json_=json_)


@item_app.command("merge")
@writes
def merge_items(
    odd: Annotated[str, typer.Argument(metavar="ODD", help="The SKU that is to stand for the other.")],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The SKU that is meant.")],
    tenant: TheTenant,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Let one SKU stand for another in every report. History keeps both; `item split` takes them apart."""
    _merge("item", tenant, None, odd, other, database_url, json_=json_)


@item_app.command("split")
@writes
def split_item(
    odd: Annotated[str, typer.Argument(metavar="ODD", help="The SKU that stands for another.")],
    tenant: TheTenant,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Take a SKU apart from the one that it stands for."""
    _split("item", tenant, None, odd, database_url, json_=json_)


@location_app.command("merge")
@writes
def merge_locations(
    odd: Annotated[str, typer.Argument(metavar="ODD", help="The name that is to stand for the other.")],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The name that is meant.")],
    tenant: TheTenant,
    site: Annotated[str, typer.Option("--site", "-s", help="The site.")],
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Let one location stand for another in every report. History keeps both; `location split` takes them apart."""
    _merge("location", tenant, site, odd, other, database_url, json_=json_)


@location_app.command("split")
@writes
def split_location(
    odd: Annotated[str, typer.Argument(metavar="ODD", help="The name that stands for another.")],
    tenant: TheTenant,
    site: Annotated[str, typer.Option("--site", "-s", help="The site.")],
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Take a location apart from the one that it stands for."""
    _split("location", tenant, site, odd, database_url, json_=json_)


def _merge(
    noun: "Noun", tenant: str, site: str | None, odd: str, other: str, database_url: str, *, json_: bool
) -> None:
    from cloud_cli.clashes import spelt
    from cloud_store.tenancy import merged_names

    old, new = spelt(odd), spelt(other)
    with database(database_url) as connection:
        standing = merged_names.merge(connection, noun, tenant, old, new, site=site)
    document = {"tenant": tenant, "site": site, noun: old, "merged_into": new, "standing_for_it": standing}
    done(f"{noun} {old!a} is shown as {new} from now on; what was booked stays as it is", document, json_=json_)


def _split(noun: "Noun", tenant: str, site: str | None, odd: str, database_url: str, *, json_: bool) -> None:
    from cloud_cli.clashes import spelt
    from cloud_store.tenancy import merged_names

    old = spelt(odd)
    with database(database_url) as connection:
        merged_names.split(connection, noun, tenant, old, site=site)
    done(f"{noun} {old!a} is shown by itself again", {"tenant": tenant, "site": site, noun: old}, json_=json_)


def _show_clashes(
    noun: "Noun", rows: Iterable[dict[str, Any]], within: tuple[str, ...], name: str, *, json_: bool
) -> None:
    from cloud_cli import clashes

    found = clashes.find(rows, within, name)
    columns = (*within, name, "looks_like", "difference", "typed", "stub")
    listing(found, columns, json_=json_, empty="No two look the same.")
    if found:
        if not json_:
            say(f"\n{clashes.ADVICE.format(noun=noun)}", err=True)
        raise typer.Exit(FAILED)


@item_app.command("add")
@writes
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
                f"Item {item.sku} of {tenant} already exists.", hint="Change it with `item import --replace`."
            )
    done(f"item {item.sku} of {tenant} added", {"tenant": tenant, "sku": item.sku}, json_=json_)


@item_app.command("list")
def list_items(database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, json_: Json = False) -> None:
    """List items."""
    from cloud_store.tenancy import registry

    with database(database_url, tenant) as connection:
        rows = list(registry.items(connection, tenant))
    columns = ("tenant", "sku", "name", "gtin", "unit", "scale", "reorder_point", "retired", "stub", "merged_into")
    listing(rows, columns, json_=json_, numbers=NUMBERS, empty="No items yet.")


@item_app.command("import")
@writes
def import_items(
    file: Annotated[Path, typer.Argument(help="CSV with a header: sku, and any other column of `item list`.")],
    tenant: TheTenant,
    replace: Annotated[bool, typer.Option("--replace", help="Change items that exist.")] = False,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Register the items of a CSV file, all or none. With --replace, what the file has no column for stays as it is."""
    from cloud_store.tenancy import registry
    from command_line import tables
    from wire_protocol import names

    table = tables.read(file, COLUMNS, required=("sku",), mend=names.respelt)
    items = [_item(row.cells, row.where) for row in table.rows]
    with database(database_url) as connection:
        changed = registry.add_items(connection, tenant, items, replace=replace, columns=table.columns)
    document = {"tenant": tenant, "read": len(items), "changed": changed}
    done(f"{changed} of {len(items)} items added or changed", document, json_=json_)


def _item(fields: dict[str, Any], where: str) -> "CatalogItem":
    """An item of what people wrote.

    Raises:
        InvalidCatalog: a value cannot be used; the message says where.
    """
    from pydantic import ValidationError

    from cloud_cli.errors import InvalidCatalog
    from cloud_store.tenancy.catalog_door import require_item
    from wire_protocol import names
    from wire_protocol.catalog import CatalogItem
    from wire_protocol.errors import InvalidName
    from wire_protocol.problems import first_problem

    given = {name: value for name, value in fields.items() if value is not None}
    given |= {name: names.respelt(given[name]) for name in _WORDS if name in given}
    try:
        given |= {name: _number(name, given[name]) for name in NUMBERS if name in given}
        given |= {
            name: _truth(name, value) for name, value in given.items() if name.endswith("_tracked") or name == "retired"
        }
        _require_unrounded(given.get("gtin", ""))
        return require_item(CatalogItem.model_validate(given))
    except ValidationError as error:
        raise InvalidCatalog(f"{where}: {first_problem(error)}") from None
    except InvalidName as error:
        raise InvalidCatalog(f"{where}: {error}", hint=error.hint) from None


def _require_unrounded(gtin: str) -> None:
    from wire_protocol.errors import InvalidName

    if _ROUNDED.fullmatch(gtin):
        raise InvalidName(
            f"gtin: {gtin} is a number that a table program has rounded.",
            hint="Format the column as text, and copy the digits again.",
        )


def _number(name: str, value: str | int) -> int:
    from wire_protocol.errors import InvalidName

    if isinstance(value, str) and not _WHOLE_NUMBER.fullmatch(value):
        raise InvalidName(f"{name}: {value[:40]!a} is no whole number.", hint="Write digits only, as 12.")
    return int(value)


def _truth(name: str, value: str | bool) -> bool:
    from wire_protocol.errors import InvalidName

    known = value if isinstance(value, bool) else _TRUTHS.get(value.lower())
    if known is None:
        raise InvalidName(f"{name}: {str(value)[:40]!a} is neither yes nor no.", hint="Write yes or no.")
    return known

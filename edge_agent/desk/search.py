"""Looking for goods by what a person has: a part of a SKU, name, lot or serial, or what a scanner reads."""

import json
from dataclasses import dataclass
from typing import Final

from edge_agent.desk import tracking
from edge_agent.ledger.database import Connection
from edge_agent.ledger.sql import statement
from wire_protocol import names
from wire_protocol.catalog import CatalogItem

ITEMS_MAX: Final = 1_000
_UNKNOWN: Final = CatalogItem(sku="?")


@dataclass(frozen=True, slots=True)
class Found:
    """Something that was found: an item, and a shelf that has it; `by` is what the text was found in.

    `on_hand` is in base units. An item of which no shelf has anything has no location.
    """

    sku: str
    name: str | None
    by: str
    location: str | None
    lot: str
    serial: str | None
    on_hand: int
    unit: str
    scale: int


@dataclass(frozen=True, slots=True)
class Low:
    """An item that is to be ordered; quantities in base units."""

    sku: str
    name: str | None
    on_hand: int
    reorder_point: int
    unit: str
    scale: int


def find(connection: Connection, text: str, *, rows_max: int) -> list[Found]:
    """Items, shelves, lots and serials in which a text is, in any case; a GTIN also with other zeros before it."""
    text = names.respelt(text, scanned=True).casefold()
    connection.create_function("folded", 1, str.casefold, deterministic=True)
    digits = text.lstrip("0") if text.isascii() and text.isdigit() else ""
    looked = {"text": text, "digits": digits, "limit": ITEMS_MAX}
    items: dict[str, CatalogItem] = {}
    by: dict[str, str] = {}
    for sku, body, found_by in connection.execute(statement("find_items"), looked):
        items[sku], by[sku] = CatalogItem.model_validate_json(body), found_by
    wanted = {"text": text, "skus": json.dumps(list(items)), "limit": rows_max}
    cells = connection.execute(statement("find_cells"), wanted).fetchall()
    pieces = tracking.positions(connection, text)
    for sku in {cell[0] for cell in cells} | {sku for sku, _ in pieces}:
        if sku not in items:
            items[sku] = tracking.item(connection, sku) or _UNKNOWN
    found = [
        _found(items[sku], sku, by.get(sku, "lot" if in_lot else "sku"), location, on_hand, lot=lot)
        for sku, location, lot, on_hand, in_lot in cells
    ]
    stocked = {each.sku for each in found}
    empty = [_found(items[sku], sku, found_by, None, 0) for sku, found_by in by.items() if sku not in stocked]
    nowhere: list[tuple[str | None, int]] = [(None, 0)]
    serials = [
        _found(items[sku], sku, "serial", place, count, serial=serial)
        for (sku, serial), places in pieces.items()
        for place, count in [*places.items()] or nowhere
    ]
    exact = [each for each in found + empty if each.sku.casefold() == text]
    return [*exact, *(each for each in serials + found + empty if each not in exact)][:rows_max]


def low(connection: Connection, *, rows_max: int) -> list[Low]:
    """Items of which this site's shelves have no more than the catalogue's reorder point."""
    rows = []
    for sku, body, on_hand in connection.execute(statement("low_stock"), {"limit": rows_max}):
        known = CatalogItem.model_validate_json(body)
        rows.append(Low(sku, known.name, on_hand, known.reorder_point or 0, known.unit, known.scale))
    return rows


def _found(
    known: CatalogItem,
    sku: str,
    by: str,
    location: str | None,
    on_hand: int,
    *,
    lot: str = "",
    serial: str | None = None,
) -> Found:
    unit = "" if known is _UNKNOWN else known.unit
    return Found(sku, known.name, by, location, lot, serial, on_hand, unit, known.scale)

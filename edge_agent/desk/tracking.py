"""What the catalogue says about tracking, and how far the ledger has it.

A person who books can still look at the label, so an entry by hand must name what its item is tracked by. What a device
reports has happened; it is booked as it came and shows up here. Dates of expiry are in no entry at all.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from edge_agent.errors import BadInput
from edge_agent.ledger.database import Connection
from edge_agent.ledger.drafts import Draft
from edge_agent.ledger.sql import statement
from wire_protocol import names
from wire_protocol.catalog import CatalogItem

Positions = dict[tuple[str, str], dict[str, int]]
"""By SKU and serial: how many pieces each shelf has, by the entries that name the serial; no empty shelves."""


class Untracked(BadInput):
    """The item is tracked by something that the booking does not name."""

    hint = (
        "Read it from the label. If it has none, --untracked books it all the same, "
        "and `stocktide edge tracking` will list it."
    )


@dataclass(frozen=True, slots=True)
class Unnamed:
    """Goods on a shelf without the lot that their item is tracked by, or with another number of serials than pieces.

    `on_hand` is in base units for a lot, in pieces for serials; `named` is how many of them have a lot or a serial.
    """

    sku: str
    location: str
    tracked_by: str
    on_hand: int
    named: int


@dataclass(frozen=True, slots=True)
class OddSerial:
    """A serial number that cannot be true: one piece at two places, or more than one."""

    sku: str
    serial: str
    places: dict[str, int]
    problem: str


@dataclass(frozen=True, slots=True)
class Report:
    """What is not as the catalogue wants it; `expiry_tracked` is how many items ask for what no entry has."""

    unnamed: list[Unnamed]
    serials: list[OddSerial]
    expiry_tracked: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def item(connection: Connection, sku: str) -> CatalogItem | None:
    """What the catalogue says of an item."""
    row = connection.execute(statement("catalog_item"), (sku,)).fetchone()
    return None if row is None else CatalogItem.model_validate_json(row[0])


def require(known: CatalogItem | None, made: Draft) -> None:
    """Check an entry that is booked by hand.

    Raises:
        Untracked: it lacks a lot or a serial that its item is tracked by, or names one serial for several pieces.
    """
    by_piece = known is None or known.scale == 0
    if made.serial is not None and made.quantity != 1 and by_piece:
        raise Untracked(
            f"A serial number is of one piece, and this is {made.quantity}.",
            hint="Book each piece with its own serial. If the number is of a whole package, add --untracked.",
        )
    if known is not None and known.lot_tracked and made.lot is None:
        raise Untracked(f"{made.sku} is tracked by lot: name it with --lot.")
    # A count says how many there are: which ones, it cannot say.
    if known is not None and known.serial_tracked and made.serial is None and made.kind != "count":
        raise Untracked(f"{made.sku} is tracked by serial number: name it with --serial, piece by piece.")


def report(connection: Connection) -> Report:
    """What of tracked items is booked without lot or serial, and which serials cannot be."""
    where = positions(connection)
    scales = {sku: 0 if (known := item(connection, sku)) is None else known.scale for sku in {sku for sku, _ in where}}
    for (sku, _), places in where.items():
        if scales[sku]:  # what is weighed or measured has a serial for each drum or roll, not for each gram
            places.update({place: (quantity > 0) - (quantity < 0) for place, quantity in places.items()})
    named = Counter(
        (sku, place) for (sku, _), places in where.items() for place, pieces in places.items() if pieces > 0
    )
    unnamed: list[Unnamed] = []
    by_serial: Counter[tuple[str, str]] = Counter()
    for sku, location, lot, on_hand, body in connection.execute(statement("tracked_cells")):
        known = CatalogItem.model_validate_json(body)
        if known.lot_tracked and not lot:
            unnamed.append(Unnamed(sku, location, "lot", on_hand, 0))
        if known.serial_tracked and not known.scale:
            by_serial[sku, location] += on_hand
    unnamed += [
        Unnamed(*cell, "serial", pieces, named[cell]) for cell, pieces in by_serial.items() if pieces != named[cell]
    ]
    odd = [found for (sku, serial), places in where.items() if (found := _odd(sku, serial, places)) is not None]
    return Report(unnamed, odd, connection.execute(statement("expiry_tracked")).fetchone()[0])


def positions(connection: Connection, text: str = "") -> Positions:
    """Where pieces with a serial are, of those whose serial contains a text in any case."""
    where: Positions = {}
    for (body,) in connection.execute(statement("serial_entries")):
        entry = json.loads(body)
        if text not in entry["serial"].casefold():
            continue
        places = where.setdefault((entry["sku"], entry["serial"]), {})
        if entry["kind"] == "count":
            places[entry["location"]] = entry["quantity"]
        else:
            for place, change in ((entry["source"], -entry["quantity"]), (entry["destination"], entry["quantity"])):
                if not names.is_virtual(place):
                    places[place] = places.get(place, 0) + change
    return {key: {place: pieces for place, pieces in where[key].items() if pieces} for key in sorted(where)}


def _odd(sku: str, serial: str, places: dict[str, int]) -> OddSerial | None:
    here = [place for place, pieces in places.items() if pieces > 0]
    gone = [place for place, pieces in places.items() if pieces < 0]
    if gone:
        problem = f"it was taken from {gone[0]}, where it was not"
    elif len(here) > 1:
        problem = f"it is at {len(here)} places"
    elif here and places[here[0]] > 1:
        problem = f"it is there {places[here[0]]} times"
    else:
        return None
    return OddSerial(sku, serial, places, problem)

"""A technician's own entry: booked into the ledger from the command line, with what it did to the shelf."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_agent.desk import places, tracking
from edge_agent.errors import BadInput
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.drafts import Draft, draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from wire_protocol import names
from wire_protocol.entries import EntryKind

_DONE: Final[dict[EntryKind, str]] = {
    "receive": "received",
    "pick": "picked",
    "move": "moved",
    "ship": "shipped",
    "arrive": "arrived",
    "scrap": "scrapped",
    "correct": "corrected",
    "count": "counted",
}


@dataclass(frozen=True, slots=True)
class Booked:
    """What was booked: the entry's number, on hand afterwards by shelf, a count's variance, and slips of names."""

    seq: int
    entry: Draft
    on_hand: dict[str, int]
    variance: int | None
    slips: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "seq": self.seq,
            "kind": self.entry.kind,
            "sku": self.entry.sku,
            "quantity": self.entry.quantity,
            "on_hand": self.on_hand,
            "variance": self.variance,
            "notes": self.warnings(),
        }

    def sentence(self) -> str:
        """One line for the technician."""
        made = self.entry
        after = ", ".join(f"{place}: {quantity}" for place, quantity in self.on_hand.items())
        if self.variance is not None:
            change = "as expected" if self.variance == 0 else f"{self.variance:+d} against the book"
            return f"counted {made.quantity} × {made.sku} at {made.location}, {change}  (entry {self.seq})"
        route = f"{made.source} → {made.destination}"
        return f"{_DONE[made.kind]} {made.quantity} × {made.sku}  {route}  now {after}  (entry {self.seq})"

    def warnings(self) -> list[str]:
        """What deserves a second look."""
        lot = f" --lot {shlex.quote(self.entry.lot)}" if self.entry.lot else ""
        back = f"To take the booking back: stocktide edge undo {self.seq}"
        return [f"{slip} {back}" for slip in self.slips] + [
            f"{place} is below zero; count it: "
            f"stocktide edge count {shlex.quote(self.entry.sku)} QUANTITY {shlex.quote(place)}{lot}"
            for place, quantity in self.on_hand.items()
            if quantity < 0
        ]


def book(
    path: Path, kind: EntryKind, sku: str, quantity: int, *, untracked: bool = False, **fields: str | None
) -> Booked:
    """Append one entry to the ledger, durably. Names are mended where that takes no guess (`names.respelt`).

    `untracked`: also without the lot or serial that the catalogue wants.

    Raises:
        BadInput: the entry is malformed or impossible, or lacks a lot or a serial.
        LedgerMissing, LedgerBusy, LedgerFull: the ledger does not take it.
    """
    if quantity == 0 and kind != "count":
        raise BadInput(f"There is nothing to {kind}: the quantity is 0.", hint="To say that a shelf is empty: count.")
    meant = {name: names.respelt(value, scanned=True) for name, value in fields.items() if value is not None}
    made = draft(kind, names.respelt(sku, scanned=True), quantity, **meant)
    with (
        database.in_our_words(),
        Ledger.open(path, SystemClock()) as ledger,
        database.transaction(ledger.connection),
    ):
        if not untracked:
            tracking.require(tracking.item(ledger.connection, made.sku), made)
        return booked(ledger, made, places.slips(ledger.connection, made))


def booked(ledger: Ledger, made: Draft, slips: Sequence[str] = ()) -> Booked:
    """Append one entry by hand, inside a transaction."""
    seq = ledger.append([made])[0]
    assert seq is not None, "an entry without a device event id is never a repetition"  # noqa: S101
    shelves = [
        place for place in (made.source, made.destination, made.location) if place and not names.is_virtual(place)
    ]
    on_hand = {place: _on_hand(ledger, place, made) for place in shelves}
    variance = ledger.connection.execute(statement("variance"), (seq,)).fetchone()[0]
    return Booked(seq, made, on_hand, variance, tuple(slips))


def _on_hand(ledger: Ledger, place: str, made: Draft) -> int:
    row = ledger.connection.execute(statement("balance"), (place, made.sku, made.lot or "")).fetchone()
    quantity: int = row[0]
    return quantity

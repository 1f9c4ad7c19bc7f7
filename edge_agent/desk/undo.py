"""Taking a booking back: a new entry that moves the goods the other way and names the entry that it takes back.

Nothing is deleted, so both entries stay in history. A count cannot be taken back, because what it replaced is not known
to be right; and neither can what a later count has already set right.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_agent.desk.booking import Booked, booked
from edge_agent.errors import BadInput
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.database import Connection
from edge_agent.ledger.drafts import Draft, draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from wire_protocol import names
from wire_protocol.entries import EntryKind

UNDO: Final = "undo "
MARK_BYTES: Final = 5
# The way back of each kind, where another kind goes exactly that way; the others are corrected at their shelf.
_BACK: Final[dict[str, EntryKind]] = {"move": "move", "ship": "arrive", "arrive": "ship", "correct": "correct"}


class NotUndone(BadInput):
    """The booking cannot be taken back."""


@dataclass(frozen=True, slots=True)
class Undone:
    """A booking that was taken back: its number, when and what it was, and the entry that takes it back."""

    seq: int
    entry: dict[str, Any]
    by: Booked

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"undone": self.seq, **self.by.as_json()}


def undo(path: Path, seq: int | None = None, *, actor: str | None = None) -> Undone:
    """Take an entry back, durably: the one of that number, or else the last one that this person booked by hand.

    Raises:
        NotUndone: there is none, it was taken back already, or it cannot be.
        LedgerMissing, LedgerBusy, LedgerFull: the ledger does not take it.
    """
    actor = None if actor is None else names.respelt(actor, scanned=True)
    with (
        database.in_our_words(),
        Ledger.open(path, SystemClock()) as ledger,
        database.transaction(ledger.connection),
    ):
        found, body = _wanted(ledger.connection, seq, actor)
        entry: dict[str, Any] = json.loads(body)
        # An epoch that is opened numbers entries again and leaves them what they are.
        mark = hashlib.blake2b(body.encode(), digest_size=MARK_BYTES).hexdigest()
        _require_not_done(ledger.connection, found, mark)
        made = _reverse(entry, found, f"{UNDO}{found} {mark}", actor)
        for place in _shelves(entry):
            _require_not_counted_since(ledger.connection, place, entry, found)
        return Undone(found, entry, booked(ledger, made))


def _wanted(connection: Connection, seq: int | None, actor: str | None) -> tuple[int, str]:
    if seq is not None:
        row = connection.execute(statement("entry_to_undo"), (seq,)).fetchone()
        missing = f"There is no entry {seq} in this gateway's ledger."
    else:
        row = connection.execute(statement("last_by_hand"), {"actor": actor}).fetchone()
        missing = f"Nothing was booked here by hand by {actor}." if actor else "Nothing was booked here without a name."
    if row is None:
        raise NotUndone(missing, hint="Name an entry: stocktide edge undo ENTRY. See: stocktide edge history")
    found, body, rejected = row
    if rejected:
        raise NotUndone(
            f"The cloud has rejected entry {found}: it is not in the stock.", hint="There is nothing to do."
        )
    reference = json.loads(body).get("reference") or ""
    if seq is None and reference.startswith(UNDO):
        what = reference.split()[1]
        raise NotUndone(
            f"The last booking, entry {found}, took entry {what} back itself.",
            hint="Name the entry that you mean: stocktide edge undo ENTRY. See: stocktide edge history",
        )
    return found, body


def _require_not_done(connection: Connection, seq: int, mark: str) -> None:
    row = connection.execute(statement("undo_of"), {"seq": seq, "mark": mark}).fetchone()
    if row is not None:
        raise NotUndone(f"Entry {seq} was taken back already, by entry {row[0]}.", hint="There is nothing to do.")


def _reverse(entry: dict[str, Any], seq: int, reference: str, actor: str | None) -> Draft:
    kind, sku, quantity = entry["kind"], entry["sku"], entry["quantity"]
    if kind == "count":
        lot = f" --lot {entry['lot']}" if entry.get("lot") else ""
        raise NotUndone(
            f"Entry {seq} is a count, and a count cannot be taken back: what it replaced may have been wrong.",
            hint=f"Count again: stocktide edge count {sku} QUANTITY {entry['location']}{lot}",
        )
    source, destination = entry["destination"], entry["source"]
    if kind == "receive" and entry["source"] == names.CUSTOMER:
        back: EntryKind = "pick"
    elif kind == "pick":
        back = "receive"
    elif kind in _BACK:
        back = _BACK[kind]
    else:
        # No entry goes back to a supplier, or from the scrap heap: the shelf is put right.
        back = "correct"
        source, destination = (source, names.ADJUST) if kind == "receive" else (names.ADJUST, destination)
    more = {name: entry.get(name) for name in ("lot", "serial")}
    return draft(back, sku, quantity, source=source, destination=destination, reference=reference, actor=actor, **more)


def _shelves(entry: dict[str, Any]) -> list[str]:
    return [place for place in (entry["source"], entry["destination"]) if not names.is_virtual(place)]


def _require_not_counted_since(connection: Connection, place: str, entry: dict[str, Any], seq: int) -> None:
    cell = (place, entry["sku"], entry.get("lot", ""))
    row = connection.execute(statement("counted_at"), cell).fetchone()
    if row is not None and row[0] is not None and row[0] > entry["hlc"]:
        raise NotUndone(
            f"{place} was counted after entry {seq}, so its stock is what was counted.",
            hint=f"If it is wrong, count again: stocktide edge count {entry['sku']} QUANTITY {place}",
        )

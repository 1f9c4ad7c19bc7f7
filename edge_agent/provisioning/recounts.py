"""Counts that the cloud has asked for: open until everything at the location was counted since.

Invariant: counts alone fulfil a request; a technician never has to close it.
"""

from typing import Any

from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from wire_protocol import clock


def ask(ledger: Ledger, location: str, sku: str | None, note: str | None) -> int:
    """Ask for a location, or one item there, to be counted. Returns how many cells are to be counted there now."""
    now_ms = ledger.clock.now_ms()
    ledger.connection.execute(statement("trim_recounts"), (now_ms,))
    row = (location, sku, note, now_ms, clock.pack(now_ms))
    ledger.connection.execute(statement("insert_recount"), row)
    return sum(each["location"] == location for each in waiting(ledger.connection))


def waiting(connection: Connection) -> list[dict[str, Any]]:
    """What is still to be counted, in the order it was asked for: location, sku, lot, note, asked_ms."""
    columns = ("location", "sku", "lot", "note", "asked_ms")
    return [dict(zip(columns, row, strict=True)) for row in connection.execute(statement("recounts"))]

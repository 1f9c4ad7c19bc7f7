"""Scans of goods that come in at one shelf, and what the cloud shows of them."""

from cloud_store.base.connection import Connection
from cloud_store.reports import snapshots
from tests.cloud_store.histories import NOW_MS, movement
from wire_protocol import clock, names
from wire_protocol.entries import Movement
from wire_protocol.stock import Cell

HLC = clock.pack(NOW_MS)
NEXT = names.ulid(NOW_MS + 1, bytes(10))
SHELF = Cell("A-1", "screw", "")


def scan(number: int, quantity: int = 1, device: str = "till-1") -> Movement:
    """Goods in, scanned by a device under an event id of its own."""
    made = movement(HLC + number, "receive", "@supplier", "A-1", quantity)
    return made.model_copy(update={"device": device, "event": f"1-{number}"})


def on_hand(connection: Connection) -> int:
    """What the cloud shows on the shelf."""
    assert snapshots.imbalance(connection) == {}
    return snapshots.balances(connection, "acme", "berlin").get(SHELF, 0)

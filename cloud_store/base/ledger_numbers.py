"""The numbers by which the tables of the ledger know things."""

from typing import Final, NamedTuple

from wire_protocol import clock

MOVEMENT_KINDS: Final = {
    "receive": 1,
    "pick": 2,
    "move": 3,
    "ship": 4,
    "arrive": 5,
    "scrap": 6,
    "correct": 7,
}
NO_LOT: Final = 0
NEVER: Final = -1  # the hybrid logical clock of nothing; real ones are not negative
HOUR_MS: Final = 3_600_000
HOUR_OF_HLC: Final = clock.pack(HOUR_MS)  # of the hybrid logical clock, whose upper bits are milliseconds


class CellKey(NamedTuple):
    """A cell of the balance by its ids."""

    location_id: int
    item_id: int
    lot_id: int

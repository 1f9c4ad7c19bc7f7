"""completejourney (84.51°) as a recording: stores are sites, and baskets are spread over tills."""

import zlib
from typing import Final

from firmware_sim.recordings.convert.online_retail import TILLS, quantity, sku, utc
from firmware_sim.recordings.convert.writer import Columns, Converted, RowUnusable

COLUMNS: Final = ("store_id", "basket_id", "product_id", "quantity", "transaction_timestamp")


class CompleteJourney:
    """Converts rows; `tills` is how many each store has."""

    columns = COLUMNS

    def __init__(self, tills: int = TILLS) -> None:
        self._tills = tills

    def __call__(self, row: Columns) -> Converted:
        store = row["store_id"]
        if not store.isascii() or not store.isdigit():
            raise RowUnusable("the store is no number")
        return Converted(
            time=utc(row["transaction_timestamp"]),
            site=f"store-{int(store)}",
            device=f"till-{zlib.crc32(row['basket_id'].encode()) % self._tills + 1}",
            sku=sku(row["product_id"]),
            quantity=quantity(row["quantity"]),
        )

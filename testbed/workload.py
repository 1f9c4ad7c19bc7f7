"""Work that looks like a warehouse: few SKUs move much (Zipf), each has a shelf and a bulk place at every site.

Seeded: the same seed gives the same entries.
"""

import random
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from wire_protocol import clock, frames, names
from wire_protocol.entries import Count, LedgerEntry, Movement
from wire_protocol.frames import FrameHeader

SKUS: Final = 5_000
PLACES: Final = 200
STEP_MS: Final = 40


class Warehouse:
    """Makes the entries of one gateway. `counts` is the share of counts among them, 0 to 1."""

    def __init__(self, seed: int, start_ms: int, *, counts: float = 0.0) -> None:
        self._chance = random.Random(seed)
        self._weights = list(accumulate(1 / rank for rank in range(1, SKUS + 1)))
        self._homes: dict[str, list[str]] = {}
        self._ms, self._counts, self._number = start_ms, counts, 0
        self._boot = names.ulid(start_ms, seed.to_bytes(10))

    def entries(self) -> Iterator[LedgerEntry]:
        """Movements, and some counts, forever."""
        while True:
            self._ms += self._chance.randint(1, 2 * STEP_MS)
            self._number += 1
            yield self._entry()

    def _entry(self) -> LedgerEntry:
        sku = f"SKU-{self._chance.choices(range(SKUS), cum_weights=self._weights)[0]:05}"
        image_store, bulk = self._homes.setdefault(
            sku, [f"P-{place:03}" for place in self._chance.sample(range(PLACES), 2)]
        )
        body = {
            "hlc": clock.pack(self._ms),
            "boot": self._boot,
            "mono_ms": self._number * STEP_MS,
            "sku": sku,
            "device": f"scanner-{self._number % 4}",
            "event": f"{self._boot[-6:]}-{self._number:x}",
            "actor": "kim",
            "reference": f"ORDER-{self._number // 7}",
        }
        if self._chance.random() < self._counts:
            return Count.model_validate(body | {"location": image_store, "quantity": self._chance.randint(0, 500)})
        kind, source, destination = self._chance.choices(
            [("pick", image_store, names.CUSTOMER), ("move", bulk, image_store), ("receive", names.SUPPLIER, bulk)],
            [6, 2, 2],
        )[0]
        quantity = {"pick": self._chance.randint(1, 5), "move": 20, "receive": 100}[kind]
        return Movement.model_validate(
            body | {"kind": kind, "source": source, "destination": destination, "quantity": quantity}
        )


class Sealer:
    """Seals the frames of one stream, one after the other."""

    def __init__(self, gateway: str, epoch: str) -> None:
        self._gateway, self._epoch = gateway, epoch
        self._frame, self._seq, self._prev = 0, 0, frames.genesis(gateway, epoch, "ledger")

    def seal(self, entries: list[LedgerEntry]) -> bytes:
        """The next frame."""
        self._frame += 1
        header = FrameHeader(
            stream="ledger",
            epoch=self._epoch,
            frame=self._frame,
            first_seq=self._seq + 1,
            count=len(entries),
            prev=self._prev,
        )
        encoded = frames.seal(header, entries)
        self._seq, self._prev = self._seq + len(entries), frames.digest(encoded)
        return encoded

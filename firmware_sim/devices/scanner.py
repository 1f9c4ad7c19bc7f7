"""A barcode scanner: somebody picks, and now and then puts something away."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from firmware_sim.devices.base import Device, PerHour, Pieces, Rate, Shelves, Skus, arrivals
from firmware_sim.firmware.happening import Happening, Scan
from firmware_sim.firmware.windows import Window


class Scanner(Device):
    """Scans SKUs at shelves: picks for customers, or receives from suppliers.

    With `opening_pieces` it first receives that many of every SKU. Each SKU has its shelf.
    """

    kind: Literal["scanner"]
    skus: Skus
    shelves: Shelves
    scans_per_h: PerHour = 40.0
    pick_share: Rate = 0.9
    pieces_max: Pieces = 4
    opening_pieces: Pieces | None = None

    def day(self, span: Window, rng: random.Random, folder: Path) -> Iterator[Happening]:
        del folder
        if self.opening_pieces is not None:
            for sku in self.skus:
                yield Happening(span.start_ms, self._receive(sku, self.opening_pieces))
        for at_ms in arrivals(span, self.scans_per_h, rng):
            sku, pieces = rng.choice(self.skus), rng.randint(1, self.pieces_max)
            if rng.random() < self.pick_share:
                yield Happening(at_ms, Scan(kind="pick", sku=sku, quantity=pieces, source=self._image_store(sku)))
            else:
                yield Happening(at_ms, self._receive(sku, pieces * 5))

    def _receive(self, sku: str, pieces: int) -> Scan:
        return Scan(kind="receive", sku=sku, quantity=pieces, destination=self._image_store(sku))

    def _image_store(self, sku: str) -> str:
        return self.shelves[self.skus.index(sku) % len(self.shelves)]

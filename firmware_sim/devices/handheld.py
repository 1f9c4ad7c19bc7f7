"""A handheld terminal: somebody receives deliveries, puts them on shelves, and counts.

Away from the access points it is offline (`offline` in the scenario): it goes on scanning and tells it all at once
when it is back.
"""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from firmware_sim.devices.base import SECOND_MS, Device, PerHour, Pieces, Rate, Shelves, Skus, arrivals
from firmware_sim.firmware.happening import Happening, Scan
from firmware_sim.firmware.windows import Window
from wire_protocol import names


class Handheld(Device):
    """A worker's tour: receive at the dock, move to a shelf, count a shelf; scans come a few seconds apart."""

    kind: Literal["handheld"]
    actor: names.Actor
    skus: Skus
    shelves: Shelves
    dock: names.LocationName = "dock"
    tours_per_h: PerHour = 6.0
    lines_max: Annotated[int, Field(ge=1, le=200)] = 8
    pieces_max: Pieces = 24
    count_share: Rate = 0.2
    miscount_rate: Rate = 0.02

    def day(self, span: Window, rng: random.Random, folder: Path) -> Iterator[Happening]:
        del folder
        found: Counter[tuple[str, str]] = Counter()
        busy_until_ms = span.start_ms
        for begin_ms in arrivals(span, self.tours_per_h, rng):
            at_ms = max(begin_ms, busy_until_ms)
            for scan in self._tour(rng, found):
                if at_ms >= span.end_ms:
                    return
                yield Happening(at_ms, scan)
                at_ms += round(rng.uniform(2, 15) * SECOND_MS)
            busy_until_ms = at_ms

    def _tour(self, rng: random.Random, found: Counter[tuple[str, str]]) -> Iterator[Scan]:
        if found and rng.random() < self.count_share:
            yield self._count(rng, found)
            return
        lines = [
            (rng.choice(self.skus), rng.randint(1, self.pieces_max)) for _ in range(rng.randint(1, self.lines_max))
        ]
        for sku, pieces in lines:
            yield Scan(kind="receive", sku=sku, quantity=pieces, destination=self.dock, actor=self.actor)
        for sku, pieces in lines:
            image_store = rng.choice(self.shelves)
            found[image_store, sku] += pieces
            yield Scan(
                kind="move", sku=sku, quantity=pieces, source=self.dock, destination=image_store, actor=self.actor
            )

    def _count(self, rng: random.Random, found: Counter[tuple[str, str]]) -> Scan:
        """What the worker finds: what was put there, unless they miscount or something was taken."""
        (image_store, sku), pieces = rng.choice(sorted(found.items()))
        if rng.random() < self.miscount_rate:
            pieces = max(0, pieces + rng.choice((-2, -1, 1, 2)))
        found[image_store, sku] = pieces
        return Scan(kind="count", sku=sku, quantity=pieces, location=image_store, actor=self.actor)

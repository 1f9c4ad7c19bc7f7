"""A shelf scale: customers take and put back pieces of one SKU, and the scale turns weight into a count.

The load cell is noisy, drifts with temperature, and takes a second to settle after each touch. The scale counts only
when a whole window of samples agrees, and tracks its zero while nothing changes, as legal scales do (automatic zero
tracking, OIML R 76-1, T.3.2.3).
"""

import random
from collections import deque
from collections.abc import Iterator
from math import exp
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from firmware_sim.devices.base import SECOND_MS, Device, PerHour, Seconds, arrivals
from firmware_sim.firmware.happening import Happening, Sample, Scan
from firmware_sim.firmware.windows import Window
from wire_protocol import names

STABLE_SAMPLES: Final = 6
SETTLE_S: Final = 0.8
TOUCH_G: Final = 400.0  # how hard a hand presses
ZERO_SHARE: Final = 0.05  # how much of the deviation the zero follows with each stable sample

Grams = Annotated[float, Field(gt=0, le=1_000_000)]


class Weigher:
    """Turns samples in grams into pieces; None while the weight is not stable."""

    def __init__(self, piece_g: float) -> None:
        self._piece_g = piece_g
        self._samples: deque[float] = deque(maxlen=STABLE_SAMPLES)
        self._zero_g = 0.0

    def sample(self, grams: float) -> int | None:
        """Take a sample."""
        self._samples.append(grams)
        spread_g = max(self._samples) - min(self._samples)
        if len(self._samples) < STABLE_SAMPLES or spread_g > self._piece_g / 2:
            return None
        mean_g = sum(self._samples) / len(self._samples) - self._zero_g
        pieces = max(0, round(mean_g / self._piece_g))
        deviation_g = mean_g - pieces * self._piece_g
        if abs(deviation_g) > self._piece_g / 3:
            return None  # between two counts: somebody leans on the shelf
        self._zero_g += ZERO_SHARE * deviation_g
        return pieces


class Scale(Device):
    """A scale under one SKU, which tells a count when it has changed, and its weight as a reading."""

    kind: Literal["scale"]
    sku: names.Sku
    location: names.LocationName
    piece_g: Grams
    pieces: Annotated[int, Field(ge=0, le=100_000)] = 20
    touches_per_h: PerHour = 12.0
    noise_g: Annotated[float, Field(ge=0, le=10_000)] = 2.0
    drift_g_per_h: Annotated[float, Field(ge=-1_000, le=1_000)] = 3.0
    sample_s: Annotated[float, Field(ge=0.1, le=60)] = 1.0
    reading_s: Seconds = 900.0

    def day(self, span: Window, rng: random.Random, folder: Path) -> Iterator[Happening]:
        del folder
        weigher, reported = Weigher(self.piece_g), None
        next_reading_ms = float(span.start_ms)
        for at_ms, grams, _ in self.weights(span, rng):
            if at_ms >= next_reading_ms:
                next_reading_ms = at_ms + max(self.reading_s, self.sample_s) * SECOND_MS
                yield Happening(at_ms, Sample({"weight_g": round(grams, 1)}))
            pieces = weigher.sample(grams)
            if pieces is not None and pieces != reported:
                reported = pieces
                yield Happening(at_ms, Scan(kind="count", sku=self.sku, quantity=pieces, location=self.location))

    def weights(self, span: Window, rng: random.Random) -> Iterator[tuple[int, float, int]]:
        """What the load cell says: (time, grams, the pieces that are truly there)."""
        touches = arrivals(span, self.touches_per_h, rng)
        touch_ms, touched_ms, pieces = next(touches, span.end_ms), span.start_ms, self.pieces
        at_ms = span.start_ms
        while at_ms < span.end_ms:
            while touch_ms <= at_ms:
                pieces = self._touched(pieces, rng)
                touched_ms, touch_ms = touch_ms, next(touches, span.end_ms)
            hours = (at_ms - span.start_ms) / 3_600_000
            swing_g = TOUCH_G * exp(-(at_ms - touched_ms) / SECOND_MS / SETTLE_S)
            grams = pieces * self.piece_g + swing_g + hours * self.drift_g_per_h + rng.gauss(0, self.noise_g)
            yield at_ms, grams, pieces
            at_ms += round(self.sample_s * SECOND_MS)

    def _touched(self, pieces: int, rng: random.Random) -> int:
        """Customers take one to three, sometimes put one back; an empty shelf is filled."""
        if pieces == 0:
            return self.pieces
        if pieces < self.pieces and rng.random() < 0.1:  # noqa: PLR2004 - one touch in ten
            return pieces + 1
        return max(0, pieces - rng.randint(1, 3))

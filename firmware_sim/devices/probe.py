"""A temperature and humidity probe: plays back what a real one measured, or wanders by itself."""

import csv
import gzip
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from firmware_sim.devices.base import SECOND_MS, Device
from firmware_sim.errors import BadScenario
from firmware_sim.firmware.happening import Happening, Sample
from firmware_sim.firmware.windows import Window

# Columns as the UCI Occupancy Detection files name them, and what our readings call them.
METRICS: Final = {"Temperature": "temperature_c", "Humidity": "humidity_pct", "Light": "light_lux", "CO2": "co2_ppm"}
PULL: Final = 0.02  # how much of the way back to the middle it goes with each step


class Probe(Device):
    """Takes a reading every `every_s` seconds.

    `playback` names a CSV file (or gzip) beside the scenario with the columns Date, Temperature, Humidity, Light and
    CO2; it is played from the scenario's start on, and over again when it ends.
    """

    kind: Literal["probe"]
    every_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    temperature_c: Annotated[float, Field(ge=-80, le=120)] = 21.0
    humidity_pct: Annotated[float, Field(ge=0, le=100)] = 45.0
    playback: Annotated[str, StringConstraints(min_length=1, max_length=1_000)] | None = None

    def day(self, span: Window, rng: random.Random, folder: Path) -> Iterator[Happening]:
        if self.playback is None:
            yield from self._walk(span, rng)
        else:
            yield from self._playback(folder / self.playback, span)

    def _walk(self, span: Window, rng: random.Random) -> Iterator[Happening]:
        """A random walk that is pulled back to the middle (an Ornstein-Uhlenbeck process in discrete time)."""
        temperature_c, humidity_pct = self.temperature_c, self.humidity_pct
        for at_ms in range(span.start_ms, span.end_ms, round(self.every_s * SECOND_MS)):
            temperature_c += PULL * (self.temperature_c - temperature_c) + rng.gauss(0, 0.05)
            humidity_pct += PULL * (self.humidity_pct - humidity_pct) + rng.gauss(0, 0.2)
            values = {
                "temperature_c": round(temperature_c, 2),
                "humidity_pct": round(min(max(humidity_pct, 0), 100), 1),
            }
            yield Happening(at_ms, Sample(values))

    def _playback(self, path: Path, span: Window) -> Iterator[Happening]:
        shift_ms = 0
        while shift_ms < span.end_ms - span.start_ms:
            last_ms, due_ms = 0, 0.0
            for after_ms, values in _recorded(path):
                at_ms = span.start_ms + shift_ms + after_ms
                if at_ms >= span.end_ms:
                    return
                if after_ms >= due_ms:
                    yield Happening(at_ms, Sample(values))
                    due_ms = after_ms + self.every_s * SECOND_MS * 0.9  # recorders are not punctual to the second
                last_ms = after_ms
            shift_ms += last_ms + round(self.every_s * SECOND_MS)


def _recorded(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Milliseconds since the first row, and values.

    Raises:
        BadScenario: the file is missing or not such a table.
    """
    line, first_ms = 1, None
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as text:
            for row in csv.DictReader(text):
                line += 1
                values = {name: float(row[column]) for column, name in METRICS.items() if row.get(column)}
                at_ms = int(datetime.fromisoformat(row["Date"]).replace(tzinfo=UTC).timestamp() * 1_000)
                first_ms = at_ms if first_ms is None else first_ms
                yield at_ms - first_ms, values
    except OSError as error:
        raise BadScenario(f"{path} cannot be played back: {error.strerror or error}.") from None
    except (KeyError, ValueError, csv.Error) as error:
        raise BadScenario(f"{path}, line {line}, cannot be played back: {error}.") from None
    if first_ms is None:
        raise BadScenario(f"{path} has nothing to play back.")

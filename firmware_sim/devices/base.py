"""What every kind of device has in a scenario: name, memory, time offline, faults; and how it tells its day."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from firmware_sim.faults.radio import Delay, Duplicate, Reorder, Silence, Stage
from firmware_sim.firmware.event_queue import MEMORY_EVENTS_MAX, SkewedClock
from firmware_sim.firmware.happening import Happening
from firmware_sim.firmware.windows import Window, Windows
from wire_protocol import names

HOUR_MS: Final = 3_600_000
MINUTE_MS: Final = 60_000
SECOND_MS: Final = 1_000
DEVICES_MAX: Final = 1_000

Rate = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=7 * 86_400)]
Minutes = Annotated[float, Field(ge=0, le=366 * 24 * 60)]
PerHour = Annotated[float, Field(gt=0, le=100_000)]
Pieces = Annotated[int, Field(ge=1, le=1_000_000)]
Skus = Annotated[list[names.Sku], Field(min_length=1, max_length=10_000)]
Shelves = Annotated[list[names.LocationName], Field(min_length=1, max_length=10_000)]


class ScenarioPart(BaseModel):
    """A part of a scenario: checked strictly, unknown fields refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Span(ScenarioPart):
    """When it starts, in minutes after the scenario's start, and how long it lasts, in minutes."""

    after_min: Minutes
    for_min: Minutes

    def window(self, start_ms: int) -> Window:
        """The span in a day that begins at a time."""
        begin_ms = start_ms + round(self.after_min * MINUTE_MS)
        return Window(begin_ms, begin_ms + round(self.for_min * MINUTE_MS))


class Reboot(ScenarioPart):
    """A restart, in minutes after the start; what has no receipt is sent again afterwards."""

    after_min: Minutes
    down_s: Seconds = 20.0


class DuplicateFault(ScenarioPart):
    """A message arrives again, at this rate."""

    rate: Rate
    within_s: Seconds = 1.0


class DelayFault(ScenarioPart):
    """A message arrives late, at this rate."""

    rate: Rate
    up_to_s: Seconds


class ReorderFault(ScenarioPart):
    """A message is overtaken by the next, at this rate."""

    rate: Rate
    within_s: Seconds = 5.0


class ClockSkewFault(ScenarioPart):
    """The device's clock is off, and drifts."""

    offset_s: Annotated[float, Field(ge=-4e9, le=4e9)] = 0.0
    drift_ppm: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0


class Faults(ScenarioPart):
    """The faults of one device; none by default."""

    duplicate: DuplicateFault | None = None
    delay: DelayFault | None = None
    reorder: ReorderFault | None = None
    clock_skew: ClockSkewFault | None = None
    reboots: Annotated[list[Reboot], Field(max_length=1_000)] = []
    silences: Annotated[list[Span], Field(max_length=1_000)] = []

    def stages(self, start_ms: int) -> list[Stage]:
        """The pipeline of the air, in order: what is said twice can be late twice, and silence swallows it all."""
        stages: list[Stage] = []
        if self.duplicate:
            stages.append(Duplicate(self.duplicate.rate, round(self.duplicate.within_s * SECOND_MS)))
        if self.delay:
            stages.append(Delay(self.delay.rate, round(self.delay.up_to_s * SECOND_MS)))
        if self.reorder:
            stages.append(Reorder(self.reorder.rate, round(self.reorder.within_s * SECOND_MS)))
        if self.silences:
            stages.append(Silence(Windows(span.window(start_ms) for span in self.silences)))
        return stages

    def clock(self, start_ms: int) -> SkewedClock:
        """What the device takes for the time."""
        if self.clock_skew is None:
            return SkewedClock()
        return SkewedClock(round(self.clock_skew.offset_s * SECOND_MS), self.clock_skew.drift_ppm, start_ms)

    def reboots_ms(self, start_ms: int) -> list[tuple[int, int]]:
        """When the device restarts, and how long it is away."""
        return [
            (start_ms + round(reboot.after_min * MINUTE_MS), round(reboot.down_s * SECOND_MS))
            for reboot in self.reboots
        ]


class Device(ScenarioPart, ABC):
    """Any device; with `count` several of them, named `name-1`, `name-2` and so on."""

    name: names.DeviceName
    count: Annotated[int, Field(ge=1, le=DEVICES_MAX)] = 1
    memory_events_max: Annotated[int, Field(ge=1, le=100_000)] = MEMORY_EVENTS_MAX
    offline: Annotated[list[Span], Field(max_length=1_000)] = []
    faults: Faults = Faults()

    @property
    def device_names(self) -> list[str]:
        if self.count == 1:
            return [self.name]
        return [f"{self.name}-{number}" for number in range(1, self.count + 1)]

    @abstractmethod
    def day(self, span: Window, rng: random.Random, folder: Path) -> Iterator[Happening]:
        """What happens at one such device in a span, in order of time; `folder` is where the scenario lies."""


def arrivals(span: Window, per_hour: float, rng: random.Random) -> Iterator[int]:
    """Times of independent happenings (a Poisson process): the gaps are exponentially distributed."""
    at_ms = float(span.start_ms)
    while True:
        at_ms += rng.expovariate(per_hour) * HOUR_MS
        if at_ms >= span.end_ms:
            return
        yield int(at_ms)

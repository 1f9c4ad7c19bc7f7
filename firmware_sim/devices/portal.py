"""An RFID portal at a dock door: tags pass and are read many times; others are read by chance.

A tag has passed once it was read `reads_min` times within `confirm_ms`. Everything read of it until it has been quiet
for `quiet_ms` belongs to that passage and is published with the same event id, as portals do that cannot tell whether
anybody heard them. What is read less often is a stray: a pallet that stood near the door.
"""

import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from firmware_sim.devices.base import SECOND_MS, Device, PerHour, Pieces, Skus, arrivals
from firmware_sim.firmware.happening import Happening, Scan
from firmware_sim.firmware.windows import Window
from wire_protocol import names

READS_MIN: Final = 3
CONFIRM_MS: Final = 2_000
QUIET_MS: Final = 5_000
REPEATS_MAX: Final = 60  # a tag that is parked in the door is not reported forever
PASSAGE_S: Final = 4.0
READS_PER_TAG: Final = (3, 24)


@dataclass(frozen=True, slots=True, order=True)
class TagRead:
    """The antenna has heard a tag."""

    at_ms: int
    epc: str


@dataclass(slots=True)
class _Passage:
    first_ms: int
    reads_ms: list[int] = field(default_factory=list)
    reported: bool = False

    def confirmed_by(self) -> int | None:
        """The first read with enough others shortly before it; None for strays."""
        spans = zip(self.reads_ms, self.reads_ms[READS_MIN - 1 :], strict=False)
        confirmed = (n for n, (first, last) in enumerate(spans, READS_MIN - 1) if last - first <= CONFIRM_MS)
        return next(confirmed, None)


@dataclass(frozen=True, slots=True)
class Passed:
    """A tag has passed: when it was certain, and when it was read again."""

    at_ms: int
    epc: str
    again_ms: tuple[int, ...]


class PassageFilter:
    """Turns reads into passages. Feed it reads in order of time; it gives passages in order of time."""

    def __init__(self) -> None:
        self._open: dict[str, _Passage] = {}
        self._closed: list[tuple[int, str, Passed]] = []
        self.strays = 0

    def passages(self, reads: Iterable[TagRead]) -> Iterator[Passed]:
        """All passages in these reads."""
        for read in reads:
            self._close(read.at_ms)
            passage = self._open.setdefault(read.epc, _Passage(read.at_ms))
            if passage.reported:
                passage.reads_ms[-1] = read.at_ms  # parked in the door: it has not been quiet, nothing more to tell
            else:
                passage.reads_ms.append(read.at_ms)
                if len(passage.reads_ms) >= REPEATS_MAX:
                    self._tell(read.epc, passage)
            unreported = (passage.first_ms for passage in self._open.values() if not passage.reported)
            yield from self._settled(min(unreported, default=read.at_ms))
        self._close(None)
        yield from self._settled(None)

    def _close(self, now_ms: int | None) -> None:
        for epc, passage in list(self._open.items()):
            if now_ms is not None and now_ms - passage.reads_ms[-1] <= QUIET_MS:
                continue
            del self._open[epc]
            if not passage.reported:
                self._tell(epc, passage)

    def _tell(self, epc: str, passage: _Passage) -> None:
        passage.reported = True
        sure = passage.confirmed_by()
        if sure is None:
            self.strays += len(passage.reads_ms)
            return
        passed = Passed(passage.reads_ms[sure], epc, tuple(passage.reads_ms[sure + 1 :]))
        heapq.heappush(self._closed, (passed.at_ms, epc, passed))

    def _settled(self, before_ms: int | None) -> Iterator[Passed]:
        """What no open passage can still come before."""
        while self._closed and (before_ms is None or self._closed[0][0] <= before_ms):
            yield heapq.heappop(self._closed)[2]


class Portal(Device):
    """Pallets of tagged goods pass; each tag is one piece with its own serial."""

    kind: Literal["portal"]
    skus: Skus
    direction: Literal["in", "out"] = "in"
    location: names.LocationName = "dock"
    pallets_per_h: PerHour = 6.0
    tags_max: Annotated[int, Field(ge=1, le=500)] = 40
    strays_per_h: PerHour = 30.0
    pieces_per_tag: Pieces = 1

    def day(self, span: Window, rng: random.Random, folder: Path) -> Iterator[Happening]:
        del folder
        for passed in PassageFilter().passages(self.reads(span, rng)):
            yield Happening(passed.at_ms, self._scan(passed.epc), passed.again_ms)

    def reads(self, span: Window, rng: random.Random) -> Iterator[TagRead]:
        """Everything the antenna hears, in order of time."""
        pending: list[TagRead] = []
        pallets = ((at_ms, True) for at_ms in arrivals(span, self.pallets_per_h, rng))
        strays = ((at_ms, False) for at_ms in arrivals(span, self.strays_per_h, rng))
        for number, (at_ms, is_pallet) in enumerate(heapq.merge(pallets, strays)):
            while pending and pending[0].at_ms <= at_ms:
                yield heapq.heappop(pending)
            made = self._pallet(number, at_ms, rng) if is_pallet else [TagRead(at_ms, self._epc(number, 0, rng))]
            for read in made:
                heapq.heappush(pending, read)
        while pending:
            yield heapq.heappop(pending)

    def _pallet(self, number: int, at_ms: int, rng: random.Random) -> Iterator[TagRead]:
        for tag in range(rng.randint(1, self.tags_max)):
            epc = self._epc(number, tag, rng)
            middle_ms = at_ms + PASSAGE_S * SECOND_MS / 2
            for _ in range(rng.randint(*READS_PER_TAG)):
                # Reads crowd where the tag is nearest to the antenna.
                yield TagRead(max(at_ms, int(rng.gauss(middle_ms, 600))), epc)

    def _epc(self, number: int, tag: int, rng: random.Random) -> str:
        return f"{self.skus.index(rng.choice(self.skus)):x}.{number:x}.{tag:x}"

    def _scan(self, epc: str) -> Scan:
        sku = self.skus[int(epc.partition(".")[0], 16)]
        if self.direction == "in":
            return Scan(kind="receive", sku=sku, quantity=self.pieces_per_tag, destination=self.location, serial=epc)
        return Scan(kind="pick", sku=sku, quantity=self.pieces_per_tag, source=self.location, serial=epc)

"""The slow lane: gateways whose frames cost the database too much time are merged apart, one gateway at a time.

With one lane for all, the dearest gateway would be every tenant's wait. A gateway comes here when a batch that it was
part of took much longer than batches of that size do on this machine these days, or had many counts of it that look
back, which cost ten times what others do. It leaves when a merge of its own frames alone had neither. The lane has a
connection of its own, so the others go on meanwhile.

Invariant: bounded. What waits here was taken into the inbox, and counts there until it is settled.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import structlog

from cloud_store.merge.arrivals import ArrivedFrame

SLOW_S: Final = 0.05  # beyond what is usual: nobody notices less
SLOW_FACTOR: Final = 4.0
FRAME_ENTRIES: Final = 50  # what a frame costs beside its entries, in entries
USUAL_S_AT_FIRST: Final = 0.0002  # an entry, before anything was measured
LEARNED: Final = 0.05  # of each batch
GATEWAYS_MAX: Final = 10_000
FRAMES_MAX: Final = 20  # of one gateway in one merge
LATE_COUNTS_MAX: Final = 50  # of one gateway in one merge of the fast lane: some 10 ms
_LOG = structlog.get_logger()


class Pace:
    """How long batches usually take; a machine that is slow today makes nobody slow."""

    def __init__(self) -> None:
        self._usual_s = USUAL_S_AT_FIRST

    def is_slow(self, frames: Sequence[ArrivedFrame], seconds: float) -> bool:
        """Whether a merge took much longer than such a merge does."""
        return seconds > SLOW_S + SLOW_FACTOR * self._usual_s * _cost(frames)

    def learn(self, frames: Sequence[ArrivedFrame], seconds: float) -> None:
        """A merge of the fast lane took so long; one that was slow counts as four times the usual and no more."""
        measured_s = min(seconds / _cost(frames), SLOW_FACTOR * self._usual_s)
        self._usual_s += LEARNED * (measured_s - self._usual_s)


def _cost(frames: Sequence[ArrivedFrame]) -> int:
    return sum(FRAME_ENTRIES + arrived.frame.header.count for arrived in frames)


class SlowLane:
    """Keeps which gateways are slow, and merges their frames.

    Args:
        merge: merges frames of one gateway, apart from the others, and answers it.
        settle: called with frames that are dealt with.
        pace: what is usual.
        mono_s: a clock that is never set.
    """

    def __init__(
        self,
        merge: Callable[[Sequence[ArrivedFrame]], Awaitable[object]],
        settle: Callable[[Sequence[ArrivedFrame]], None],
        pace: Pace,
        mono_s: Callable[[], float],
    ) -> None:
        self._merge, self._settle, self._pace, self._mono_s = merge, settle, pace, mono_s
        self._slow: dict[str, None] = {}
        self._late: set[str] = set()  # of the slow ones: their last merge had many late counts
        self._waiting: dict[str, list[ArrivedFrame]] = {}
        self._filled = asyncio.Event()

    def sort_out(self, frames: Iterable[ArrivedFrame]) -> list[ArrivedFrame]:
        """Take the frames of slow gateways; the others are returned."""
        others = []
        for arrived in frames:
            if arrived.gateway in self._slow:
                self._take(arrived)
            else:
                others.append(arrived)
        return others

    def move_in(self, frames: Sequence[ArrivedFrame]) -> None:
        """These took too long: their gateways are slow until they prove otherwise, and the frames are merged here."""
        self.suspect(frames)
        for arrived in frames:
            self._take(arrived)

    def suspect(self, frames: Sequence[ArrivedFrame]) -> None:
        """These were merged and took too long: what their gateways send from now on comes here."""
        self._add({arrived.gateway for arrived in frames})

    def note_late(self, counts: Mapping[str, int]) -> None:
        """In a merge, of either lane, gateways had these numbers of counts that look back."""
        late = {gateway for gateway, number in counts.items() if number > LATE_COUNTS_MAX}
        self._add(late - self._slow.keys())
        self._late |= late & self._slow.keys()

    def _add(self, gateways: Collection[str]) -> None:
        if not gateways:
            return
        _LOG.warning("gateways_slow", gateways=len(gateways), examples=sorted(gateways)[:5])
        for gateway in sorted(gateways):
            if len(self._slow) >= GATEWAYS_MAX:
                self._leave(next(iter(self._slow)))
            self._slow[gateway] = None

    def _leave(self, gateway: str) -> None:
        self._slow.pop(gateway, None)
        self._late.discard(gateway)

    async def run(self) -> None:
        """Merge until cancelled."""
        while True:
            await self._filled.wait()
            gateway = next(iter(self._waiting))
            frames, rest = _cut(self._waiting.pop(gateway))
            if rest:
                self._waiting[gateway] = rest  # to the end of the line
            if not self._waiting:
                self._filled.clear()
            self._late.discard(gateway)
            began_s = self._mono_s()
            await self._merge(frames)
            self._settle(frames)
            if gateway not in self._late and not self._pace.is_slow(frames, self._mono_s() - began_s):
                self._leave(gateway)

    def _take(self, arrived: ArrivedFrame) -> None:
        self._waiting.setdefault(arrived.gateway, []).append(arrived)
        self._filled.set()


def _cut(frames: list[ArrivedFrame]) -> tuple[list[ArrivedFrame], list[ArrivedFrame]]:
    return frames[:FRAMES_MAX], frames[FRAMES_MAX:]

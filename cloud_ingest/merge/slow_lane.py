"""The slow lane: gateways whose frames cost the database too much time are merged apart, one gateway at a time.

With one lane for all, the dearest gateway would be every tenant's wait. A gateway comes here when a batch that it was
part of took too long, and leaves when a merge of its own frames alone was quick. The lane has a connection of its own,
so the others go on meanwhile.

Invariant: bounded. What waits here was taken into the inbox, and counts there until it is settled.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import structlog

from cloud_store.merge.arrivals import ArrivedFrame

SLOW_S: Final = 1.0  # a batch that takes longer has a slow gateway in it
QUICK_S: Final = 0.25  # a merge of one gateway's frames that takes less was not slow
GATEWAYS_MAX: Final = 10_000
FRAMES_MAX: Final = 20  # of one gateway in one merge
_LOG = structlog.get_logger()


class SlowLane:
    """Keeps which gateways are slow, and merges their frames.

    Args:
        merge: merges frames of one gateway, apart from the others, and answers it.
        settle: called with frames that are dealt with.
        mono_s: a clock that is never set.
    """

    def __init__(
        self,
        merge: Callable[[Sequence[ArrivedFrame]], Awaitable[object]],
        settle: Callable[[Sequence[ArrivedFrame]], None],
        mono_s: Callable[[], float],
    ) -> None:
        self._merge, self._settle, self._mono_s = merge, settle, mono_s
        self._slow: dict[str, None] = {}
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
        gateways = {arrived.gateway for arrived in frames}
        _LOG.warning("gateways_slow", gateways=len(gateways), examples=sorted(gateways)[:5])
        for gateway in sorted(gateways):
            if len(self._slow) >= GATEWAYS_MAX:
                del self._slow[next(iter(self._slow))]
            self._slow[gateway] = None

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
            began_s = self._mono_s()
            await self._merge(frames)
            self._settle(frames)
            if self._mono_s() - began_s < QUICK_S:
                self._slow.pop(gateway, None)

    def _take(self, arrived: ArrivedFrame) -> None:
        self._waiting.setdefault(arrived.gateway, []).append(arrived)
        self._filled.set()


def _cut(frames: list[ArrivedFrame]) -> tuple[list[ArrivedFrame], list[ArrivedFrame]]:
    return frames[:FRAMES_MAX], frames[FRAMES_MAX:]

"""Lanes: where frames that were read wait for their merge, those of a site always in the same one.

Each lane merges on a connection of its own: while one waits for the database another computes, and what one site's
frames cost is a wait for its lane alone. Sites in different lanes have no cursor, cell or digest in common, so no lane
waits for a lock of another. The registry is asked once for each gateway; while it cannot be asked, and for a gateway
that is not registered, the first lane does: a lane decides how long something waits, never what becomes of it.

Invariant: bounded. A lane that has a batch waiting takes no more; what is for it stays in the inbox.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

from cloud_store.base.errors import StoreError
from cloud_store.base.gateways import Gateway
from cloud_store.merge.arrivals import ArrivedFrame, MergeReport

GATEWAYS_REMEMBERED_MAX: Final = 200_000
ROOM_LOOK_S: Final = 0.01  # for another lane's frames, while one is full
MergeFrames: TypeAlias = Callable[[Sequence[ArrivedFrame]], Awaitable[MergeReport]]
FindGateways: TypeAlias = Callable[[Collection[str]], Awaitable[Mapping[str, Gateway]]]


class MergeLane:
    """Frames that wait, and how they are merged."""

    def __init__(self, merge: MergeFrames, taken: Callable[[], None]) -> None:
        self.merge = merge
        self._waiting: list[ArrivedFrame] = []
        self._filled, self._taken = asyncio.Event(), taken

    def __len__(self) -> int:
        """How many frames wait."""
        return len(self._waiting)

    def add(self, frame: ArrivedFrame) -> None:
        """Let a frame wait."""
        self._waiting.append(frame)
        self._filled.set()

    async def take(self) -> list[ArrivedFrame]:
        """Everything that waits, as soon as something does."""
        await self._filled.wait()
        self._filled.clear()
        taken, self._waiting = self._waiting, []
        self._taken()
        return taken


class MergeLanes(list[MergeLane]):
    """The lanes of a worker.

    Args:
        merges: how each lane merges.
        frames_max: frames from which on a lane takes no more.
        find: asks the registry for gateways.
    """

    def __init__(self, merges: Iterable[MergeFrames], frames_max: int, find: FindGateways) -> None:
        super().__init__(MergeLane(merge, self._make_room) for merge in merges)
        self._frames_max, self._find = frames_max, find
        self._sites: dict[str, int] = {}
        self._room = asyncio.Event()

    def is_full_for(self, gateway: str) -> bool:
        """Whether the lane of a gateway takes no more for now."""
        return len(self._of(gateway)) >= self._frames_max

    async def add(self, frames: Sequence[ArrivedFrame]) -> None:
        """Let frames wait, each in its lane."""
        if len(self) > 1:
            await self._learn({frame.gateway for frame in frames} - self._sites.keys())
        for frame in frames:
            self._of(frame.gateway).add(frame)

    async def room(self) -> None:
        """Wait for a lane to take what waits in it, for a moment."""
        self._room.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(ROOM_LOOK_S):
                await self._room.wait()

    def _make_room(self) -> None:
        self._room.set()

    def _of(self, gateway: str) -> MergeLane:
        return self[self._sites.get(gateway, 0) % len(self)]

    async def _learn(self, unknown: Collection[str]) -> None:
        if not unknown:
            return
        with suppress(StoreError):
            found = await self._find(unknown)
            if len(self._sites) + len(found) > GATEWAYS_REMEMBERED_MAX:
                self._sites.clear()
            self._sites |= {name: gateway.site_id for name, gateway in found.items()}

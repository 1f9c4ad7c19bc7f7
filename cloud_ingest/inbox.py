"""Frames that arrived and wait to be merged: a queue bounded in frames and in bytes.

Invariant: what does not fit is not taken and so never acknowledged; the gateway has it and sends it again.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from wire_protocol.topics import Stream


@dataclass(frozen=True, slots=True)
class Arrival:
    """A payload on a frame topic, not yet looked at."""

    gateway: str
    stream: Stream
    topic: str
    payload: bytes
    received_ms: int


class Inbox:
    """A bounded queue of arrivals for one consumer."""

    def __init__(self, *, frames_max: int, bytes_max: int) -> None:
        self._frames_max, self._bytes_max = frames_max, bytes_max
        self._waiting: deque[Arrival] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def fill(self) -> float:
        """How full it is, 0 to 1."""
        return max(len(self._waiting) / self._frames_max, self._bytes / self._bytes_max)

    def offer(self, arrival: Arrival) -> bool:
        """Take an arrival if there is room. Returns whether it was taken."""
        if len(self._waiting) >= self._frames_max or self._bytes + len(arrival.payload) > self._bytes_max:
            return False
        self._waiting.append(arrival)
        self._bytes += len(arrival.payload)
        self._arrived.set()
        return True

    async def wait(self) -> None:
        """Wait until something is there."""
        await self._arrived.wait()

    def take(self, frames_max: int) -> list[Arrival]:
        """Take out the oldest, in order of arrival."""
        taken = [self._waiting.popleft() for _ in range(min(frames_max, len(self._waiting)))]
        self._bytes -= sum(len(arrival.payload) for arrival in taken)
        if not self._waiting:
            self._arrived.clear()
        return taken


def window(fill: float, frames_max: int) -> int:
    """How many frames a gateway may have in flight while the inbox is this full.

    All of them up to half full, then fewer in proportion, one when it is full. Zero is kept for a database that is
    away: a gateway that is told zero waits for its resend timer, which is too slow to smooth a peak.
    """
    room = min(1.0, max(0.0, 2 * (1 - fill)))
    return max(1, round(frames_max * room))

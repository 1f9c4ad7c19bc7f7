"""Frames that arrived and wait to be merged: a queue bounded in frames and in bytes, and fair between gateways.

Frames are taken from the gateways in turn, each gateway's own in order, so that everybody gets a first acknowledgement
soon, even when a hundred come back at once with full windows.

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
        self._waiting: dict[str, deque[Arrival]] = {}
        self._frames = self._bytes = 0
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return self._frames

    @property
    def fill(self) -> float:
        """How full it is, 0 to 1."""
        return max(self._frames / self._frames_max, self._bytes / self._bytes_max)

    def offer(self, arrival: Arrival) -> bool:
        """Take an arrival if there is room. Returns whether it was taken."""
        if self._frames >= self._frames_max or self._bytes + len(arrival.payload) > self._bytes_max:
            return False
        self._waiting.setdefault(arrival.gateway, deque()).append(arrival)
        self._frames += 1
        self._bytes += len(arrival.payload)
        self._arrived.set()
        return True

    async def wait(self) -> None:
        """Wait until something is there."""
        await self._arrived.wait()

    def take(self, frames_max: int) -> list[Arrival]:
        """Take frames out, one of each gateway in turn."""
        taken: list[Arrival] = []
        while self._waiting and len(taken) < frames_max:
            gateway, queue = next(iter(self._waiting.items()))
            taken.append(queue.popleft())
            del self._waiting[gateway]
            if queue:
                self._waiting[gateway] = queue  # to the end of the line
        self._frames -= len(taken)
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

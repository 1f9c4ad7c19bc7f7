"""Frames that arrived and wait to be merged: a queue bounded in frames and in bytes, and fair between gateways.

Frames that were taken out to be merged count in bytes until they are settled: hours, when the database is away so long.

Frames are taken from the gateways in turn, each gateway's own in order, so that everybody gets a first acknowledgement
soon, even when a hundred come back at once with full windows.

A gateway that has waited too long sends again what waits here still, or was taken and is being merged. That is dropped:
to read everything twice when there is too much of it already would make the wait longer, and the repeats more.

Invariant: what does not fit is not taken and so never acknowledged; the gateway has it and sends it again.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

from cloud_ingest.inbound import Inbound

Offer: TypeAlias = Literal["taken", "repeated", "no_room"]


class Inbox:
    """A bounded queue of arrivals for one consumer."""

    def __init__(self, *, frames_max: int, bytes_max: int) -> None:
        self._frames_max, self._bytes_max = frames_max, bytes_max
        self._waiting: dict[str, dict[bytes, Inbound]] = {}  # of each gateway, by payload, in the order they came
        self._in_hand: set[tuple[str, bytes]] = set()
        self._frames = self._bytes = self._bytes_in_hand = 0
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return self._frames

    @property
    def fill(self) -> float:
        """How full it is, 0 to 1."""
        return max(self._frames / self._frames_max, self._bytes / self._bytes_max)

    def offer(self, arrival: Inbound) -> Offer:
        """Take an arrival if it is not here already and there is room."""
        queue = self._waiting.get(arrival.sender, {})
        if arrival.payload in queue or (arrival.sender, arrival.payload) in self._in_hand:
            return "repeated"
        held = self._bytes + self._bytes_in_hand
        if self._frames >= self._frames_max or held + len(arrival.payload) > self._bytes_max:
            return "no_room"
        queue[arrival.payload] = arrival
        self._waiting[arrival.sender] = queue
        self._frames += 1
        self._bytes += len(arrival.payload)
        self._arrived.set()
        return "taken"

    async def wait(self) -> None:
        """Wait until something is there."""
        await self._arrived.wait()

    def take(self, frames_max: int, unless: Callable[[str], bool] = lambda _: False) -> list[Inbound]:
        """Take frames out, one of each gateway in turn; they are in hand until `settled`.

        Those of gateways that `unless` is true of stay.
        """
        taken: list[Inbound] = []
        line = deque(gateway for gateway in self._waiting if not unless(gateway))
        while line and len(taken) < frames_max:
            gateway = line.popleft()
            queue = self._waiting.pop(gateway)
            taken.append(queue.pop(next(iter(queue))))
            if queue:
                self._waiting[gateway] = queue  # to the end of the line
                line.append(gateway)
        self._frames -= len(taken)
        size = sum(len(arrival.payload) for arrival in taken)
        self._bytes, self._bytes_in_hand = self._bytes - size, self._bytes_in_hand + size
        self._in_hand |= {(arrival.sender, arrival.payload) for arrival in taken}
        if not self._waiting:
            self._arrived.clear()
        return taken

    def settled(self, taken: Iterable[tuple[str, bytes]]) -> None:
        """What was taken, by gateway and payload, has been dealt with; if it comes again, its answer was lost."""
        settled = self._in_hand & set(taken)
        self._in_hand -= settled
        self._bytes_in_hand -= sum(len(payload) for _, payload in settled)


def window(fill: float, frames_max: int) -> int:
    """How many frames a gateway may have in flight while the inbox is this full.

    All of them up to half full, then fewer in proportion, one when it is full. Zero is kept for a database that is
    away: a gateway that gets a window of zero waits for its resend timer, which is too slow to smooth a peak.
    """
    room = min(1.0, max(0.0, 2 * (1 - fill)))
    return max(1, round(frames_max * room))

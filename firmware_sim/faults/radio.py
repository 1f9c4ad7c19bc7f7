"""The air between a device and its broker: a pipeline of faults over what the device publishes. Sans-I/O, seeded.

Each stage turns one publication into none, one or several, at the same or at later times; the air holds them until
they are due. A message lost here is sent again by the firmware, which has no receipt for it.

Invariant: no stage makes up or alters a payload, and the air holds at most `RADIO_MESSAGES_MAX`.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from firmware_sim.firmware.event_queue import Outgoing
from firmware_sim.firmware.windows import Windows

RADIO_MESSAGES_MAX: Final = 10_000


class Stage(Protocol):
    """One fault."""

    def feed(self, message: Outgoing, rng: random.Random) -> list[Outgoing]:
        """What becomes of a message."""

    def flush(self, now_ms: int) -> list[Outgoing]:
        """What the stage has held back and lets go at the latest now."""

    def next_ms(self) -> int | None:
        """When it will let something go."""


class _Memoryless:
    """A stage that holds nothing back."""

    def flush(self, now_ms: int) -> list[Outgoing]:
        del now_ms
        return []

    def next_ms(self) -> int | None:
        return None


@dataclass(slots=True)
class Duplicate(_Memoryless):
    """At a rate, a message arrives again, up to `within_ms` later: MQTT's DUP, or a repeater."""

    rate: float
    within_ms: int

    def feed(self, message: Outgoing, rng: random.Random) -> list[Outgoing]:
        if rng.random() >= self.rate:
            return [message]
        return [message, replace(message, at_ms=message.at_ms + rng.randint(0, self.within_ms))]


@dataclass(slots=True)
class Delay(_Memoryless):
    """At a rate, a message arrives up to `up_to_ms` later."""

    rate: float
    up_to_ms: int

    def feed(self, message: Outgoing, rng: random.Random) -> list[Outgoing]:
        if rng.random() >= self.rate:
            return [message]
        return [replace(message, at_ms=message.at_ms + rng.randint(0, self.up_to_ms))]


@dataclass(slots=True)
class Silence(_Memoryless):
    """While it lasts, nothing that the device sends arrives, and the device does not know."""

    windows: Windows

    def feed(self, message: Outgoing, rng: random.Random) -> list[Outgoing]:
        del rng
        return [message] if self.windows.end_ms(message.at_ms) is None else []


class Reorder:
    """At a rate, a message is overtaken by the next one, or arrives `within_ms` later when there is none."""

    def __init__(self, rate: float, within_ms: int) -> None:
        self.rate, self.within_ms = rate, within_ms
        self._held: Outgoing | None = None

    def feed(self, message: Outgoing, rng: random.Random) -> list[Outgoing]:
        if self._held is not None:
            held, self._held = self._held, None
            return [message, replace(held, at_ms=max(held.at_ms, message.at_ms))]
        if rng.random() >= self.rate:
            return [message]
        self._held = message
        return []

    def flush(self, now_ms: int) -> list[Outgoing]:
        due_ms = self.next_ms()
        if self._held is None or due_ms is None or due_ms > now_ms:
            return []
        held, self._held = replace(self._held, at_ms=due_ms), None
        return [held]

    def next_ms(self) -> int | None:
        return None if self._held is None else self._held.at_ms + self.within_ms


class RadioChannel:
    """All faults of one device, in order, and the messages that are on their way."""

    def __init__(self, stages: Sequence[Stage], rng: random.Random) -> None:
        self._stages, self._rng = tuple(stages), rng
        self._way: list[tuple[int, int, Outgoing]] = []
        self._number = 0
        self.lost = 0

    @property
    def is_empty(self) -> bool:
        return not self._way and self._next_flush_ms() is None

    def push(self, messages: Sequence[Outgoing]) -> None:
        """Give messages to the air."""
        self._pass(messages, 0)

    def due(self, now_ms: int) -> list[Outgoing]:
        """What arrives by now, in order of time."""
        for number, stage in enumerate(self._stages):
            self._pass(stage.flush(now_ms), number + 1)
        arrived = []
        while self._way and self._way[0][0] <= now_ms:
            arrived.append(heapq.heappop(self._way)[2])
        return arrived

    def next_ms(self) -> int | None:
        """When something arrives next."""
        times = [self._way[0][0] if self._way else None, self._next_flush_ms()]
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def quiet_until_ms(self, now_ms: int) -> int | None:
        """When the silence ends in which we are."""
        ends = [stage.windows.end_ms(now_ms) for stage in self._stages if isinstance(stage, Silence)]
        return max((end_ms for end_ms in ends if end_ms is not None), default=None)

    def _next_flush_ms(self) -> int | None:
        times = (stage.next_ms() for stage in self._stages)
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def _pass(self, messages: Sequence[Outgoing], first: int) -> None:
        for stage in self._stages[first:]:
            messages = [made for message in messages for made in stage.feed(message, self._rng)]
        for message in messages:
            if len(self._way) >= RADIO_MESSAGES_MAX:
                self.lost += 1
                continue
            self._number += 1
            heapq.heappush(self._way, (message.at_ms, self._number, message))

"""Virtual time: steps in a heap, ordered by time and then by the order they were asked for; and the trace of a run.

Invariant: one step runs at a time and to its end; whatever may go wrong between two steps goes wrong between two of
these.
"""

import hashlib
import heapq
from collections import deque
from collections.abc import Callable
from typing import Final

Step = Callable[[], None]

START_MS: Final = 1_767_225_600_000  # 2026-01-01 00:00 UTC; nothing depends on it
HOUR_MS: Final = 3_600_000
TRACE_LINES_KEPT: Final = 400
STEPS_MAX: Final = 400_000  # twenty times what a day with the worst fault rates takes


class Endless(Exception):
    """Somebody asks, resends or answers without end."""


class Schedule:
    """What happens next."""

    def __init__(self, start_ms: int = START_MS) -> None:
        self.now_ms = start_ms
        self.steps_done = 0
        self._heap: list[tuple[int, int, Step]] = []
        self._asked = 0

    def after(self, delay_ms: float, step: Step) -> None:
        """Run a step later, whatever happens until then; whoever asked must look whether it still matters."""
        self._asked += 1
        heapq.heappush(self._heap, (self.now_ms + max(0, int(delay_ms)), self._asked, step))

    def run_until(self, end_ms: int) -> None:
        """Run every step due up to a time, and end at that time.

        Raises:
            Endless: there is no end of steps.
        """
        heap = self._heap
        while heap and heap[0][0] <= end_ms:
            self.now_ms, _, step = heapq.heappop(heap)
            self.steps_done += 1
            if self.steps_done > STEPS_MAX:
                raise Endless
            step()
        self.now_ms = end_ms


class Trace:
    """What happened, one line each: the last lines for people, a digest of all for the proof of determinism."""

    def __init__(self, schedule: Schedule, echo: Callable[[str], None] | None = None) -> None:
        self._schedule, self._echo = schedule, echo
        self._start_ms = schedule.now_ms
        self._digest = hashlib.blake2b(digest_size=16)
        self.lines: deque[str] = deque(maxlen=TRACE_LINES_KEPT)

    def __call__(self, who: str, what: str) -> None:
        line = f"{clock_face(self._schedule.now_ms - self._start_ms)} {who:<12} {what}"
        self._digest.update(line.encode())
        self.lines.append(line)
        if self._echo is not None:
            self._echo(line)

    @property
    def digest(self) -> str:
        """The digest of every line so far."""
        return self._digest.hexdigest()


def clock_face(elapsed_ms: int) -> str:
    """Simulated time since the start: hours, minutes, seconds and milliseconds."""
    seconds, ms = divmod(elapsed_ms, 1000)
    return f"{seconds // 3600:>4}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ms:03}"

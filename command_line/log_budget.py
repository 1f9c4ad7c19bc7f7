"""How often the same thing is logged: a sender that is wrong a thousand times a second must not fill the log's disk.

Invariant: bounded in memory; what is left out is counted, and the next line of the same thing says how many.
"""

import time
from collections.abc import Callable, Hashable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

LINES_MAX: Final = 5
WINDOW_S: Final = 60.0
KEYS_MAX: Final = 10_000


@dataclass(slots=True)
class _Window:
    began_s: float
    written: int = 0
    left_out: int = 0


class LogBudget:
    """At most `lines_max` lines of a key in each `window_s` seconds; the clock is the caller's."""

    def __init__(self, lines_max: int = LINES_MAX, window_s: float = WINDOW_S, keys_max: int = KEYS_MAX) -> None:
        self._lines_max, self._window_s, self._keys_max = lines_max, window_s, keys_max
        self._windows: dict[Hashable, _Window] = {}

    def admit(self, key: Hashable, now_s: float) -> int | None:
        """Ask for a line. Returns None when it is to be left out, otherwise how many were left out before it."""
        window = self._windows.pop(key, None)
        left_out = 0
        if window is None or now_s - window.began_s >= self._window_s:
            left_out = 0 if window is None else window.left_out
            window = _Window(now_s)
        if len(self._windows) >= self._keys_max:
            del self._windows[next(iter(self._windows))]
        self._windows[key] = window
        if window.written >= self._lines_max:
            window.left_out += 1
            return None
        window.written += 1
        return left_out


@dataclass(slots=True)
class Sparing:
    """A processor of structlog's: of each event about a sender a few lines are written, the others are counted.

    `about` are the fields that name a sender, the first that a line has decides; a line without any is always written.
    `drop` is what structlog wants raised for a line that is left out.
    """

    about: tuple[str, ...]
    drop: type[BaseException]
    budget: LogBudget = field(default_factory=LogBudget)
    now_s: Callable[[], float] = time.monotonic

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """The line, or the error that drops it."""
        sender = next((event[name] for name in self.about if event.get(name)), None)
        if sender is None:
            return event
        left_out = self.budget.admit((event["event"], sender), self.now_s())
        if left_out is None:
            raise self.drop
        return {**event, "left_out": left_out} if left_out else event

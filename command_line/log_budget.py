"""How often the same thing is logged: a sender that is wrong a thousand times a second must not fill the log's disk.

Invariant: bounded in memory; what is left out is counted, and the next line of the same thing says how many.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

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

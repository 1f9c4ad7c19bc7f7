"""Spans of simulated time in which something is so: a device offline, a radio silent."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """From a time on, up to but not including another; Unix milliseconds."""

    start_ms: int
    end_ms: int


class Windows:
    """Windows in order. Time only moves forward, so what is over is forgotten."""

    def __init__(self, windows: Iterable[Window] = ()) -> None:
        self._windows = sorted(windows)

    def end_ms(self, now_ms: int) -> int | None:
        """When the window that now is in ends; None outside of any."""
        while self._windows and self._windows[0].end_ms <= now_ms:
            del self._windows[0]
        first = self._windows[0] if self._windows else None
        return first.end_ms if first and first.start_ms <= now_ms else None

    def next_start_ms(self, now_ms: int) -> int | None:
        """When the next window begins; None when there is none."""
        return next((window.start_ms for window in self._windows if window.start_ms > now_ms), None)

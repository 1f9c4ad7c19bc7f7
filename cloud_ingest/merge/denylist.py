"""Gateways that were refused a moment ago: their frames are dropped unread for a while.

An unknown gateway that keeps sending must neither keep the merge busy nor fill the dead letters. The same goes for a
known one that sends frame after frame that cannot be used: `Strikes` says when it was too many.

Invariant: bounded; the longest remembered is forgotten first.
"""

from typing import Final

MINUTE_S: Final = 60.0


class Denylist:
    """Remembers refused gateways for `quiet_s` seconds; the clock is the caller's."""

    def __init__(self, *, quiet_s: float, gateways_max: int) -> None:
        self._quiet_s, self._gateways_max = quiet_s, gateways_max
        self._until: dict[str, float] = {}

    def add(self, gateway: str, now_s: float, quiet_s: float | None = None) -> None:
        """Remember a refusal, for `quiet_s` seconds or as long as usual."""
        self._until.pop(gateway, None)
        if len(self._until) >= self._gateways_max:
            del self._until[next(iter(self._until))]
        self._until[gateway] = now_s + (self._quiet_s if quiet_s is None else quiet_s)

    def covers(self, gateway: str, now_s: float) -> bool:
        """Whether a gateway is still to be ignored."""
        until = self._until.get(gateway)
        if until is None:
            return False
        if now_s < until:
            return True
        del self._until[gateway]
        return False


class Strikes:
    """Counts what cannot be used of each gateway, in minutes of its own; the clock is the caller's."""

    def __init__(self, per_minute_max: int, *, gateways_max: int) -> None:
        self._per_minute_max, self._gateways_max = per_minute_max, gateways_max
        self._minutes: dict[str, tuple[float, int]] = {}

    def exceeded(self, gateway: str, count: int, now_s: float) -> bool:
        """Count something; returns whether it is more than a minute may have."""
        began_s, before = self._minutes.pop(gateway, (now_s, 0))
        if now_s - began_s > MINUTE_S:
            began_s, before = now_s, 0
        if len(self._minutes) >= self._gateways_max:
            del self._minutes[next(iter(self._minutes))]
        self._minutes[gateway] = began_s, before + count
        return before + count > self._per_minute_max

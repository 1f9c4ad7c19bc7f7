"""Gateways that were refused a moment ago: their frames are dropped unread for a while.

An unknown gateway that keeps sending must neither keep the merge busy nor fill the dead letters.

Invariant: bounded; the longest remembered is forgotten first.
"""


class Denylist:
    """Remembers refused gateways for `quiet_s` seconds; the clock is the caller's."""

    def __init__(self, *, quiet_s: float, gateways_max: int) -> None:
        self._quiet_s, self._gateways_max = quiet_s, gateways_max
        self._until: dict[str, float] = {}

    def add(self, gateway: str, now_s: float) -> None:
        """Remember a refusal."""
        self._until.pop(gateway, None)
        if len(self._until) >= self._gateways_max:
            del self._until[next(iter(self._until))]
        self._until[gateway] = now_s + self._quiet_s

    def covers(self, gateway: str, now_s: float) -> bool:
        """Whether a gateway is still to be ignored."""
        until = self._until.get(gateway)
        if until is None:
            return False
        if now_s < until:
            return True
        del self._until[gateway]
        return False

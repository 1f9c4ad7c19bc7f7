"""When a gateway asks for its site's other logs: a sans-I/O state machine, like `replication`.

On contact, when it notices a gap, again when no answer comes, and now and then.

Invariant: nothing here waits or reads a clock; time in milliseconds is an argument.
"""

from dataclasses import dataclass
from typing import Final

RETRY_MS: Final = 5_000
GAP_MS: Final = 500  # frames of one gap come together; the first ask answers them all


@dataclass(slots=True)
class PollTimer:
    """Decides when to ask. `interval_ms` is how often a gateway asks that has noticed nothing."""

    interval_ms: int
    retry_ms: int = RETRY_MS
    _connected: bool = False
    _ask_at_ms: int = 0
    _asked: int = 0
    _fruitless: int = 0

    def connected(self, now_ms: int) -> None:
        """The link is up: ask at once."""
        self._connected, self._asked, self._ask_at_ms = True, 0, now_ms

    def disconnected(self) -> None:
        """The link is down."""
        self._connected = False

    def poll_now(self, now_ms: int) -> None:
        """What is wanted has changed."""
        self._asked, self._ask_at_ms = 0, now_ms

    def gap(self, now_ms: int) -> None:
        """A frame came whose predecessor is missing here."""
        if not self._asked:
            delay_ms = min(self.interval_ms, GAP_MS * 2 ** min(self._fruitless, 16))
            self._ask_at_ms = min(self._ask_at_ms, now_ms + delay_ms)

    def missing(self, now_ms: int) -> None:
        """The answer has come to its end and something is missing still; asked again and again, ever less often."""
        self._fruitless += 1
        self.gap(now_ms)

    def taken(self) -> None:
        """A frame was taken: asking bears fruit."""
        self._fruitless = 0

    def answered(self, now_ms: int, *, more: bool) -> None:
        """The answer has come to its end."""
        self._asked, self._ask_at_ms = 0, now_ms if more else now_ms + self.interval_ms

    def due(self, now_ms: int) -> bool:
        """Whether to request now; a yes counts as a request. Without an answer it is due again, ever less often."""
        if not self._connected or now_ms < self._ask_at_ms:
            return False
        delay_ms = min(self.interval_ms, self.retry_ms * 2 ** min(self._asked, 16))
        self._asked, self._ask_at_ms = self._asked + 1, now_ms + delay_ms
        return True

    def next_deadline_ms(self) -> int | None:
        """When to call `due` again; None while there is no link."""
        return self._ask_at_ms if self._connected else None

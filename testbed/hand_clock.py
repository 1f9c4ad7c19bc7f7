"""A clock that a test turns by hand: time passes when the test says so, however fast the machine is."""

from wire_protocol import names


class HandClock:
    """A clock that only the test turns."""

    boot = names.ulid(1_763_700_000_000, bytes(10))

    def __init__(self, now_ms: int = 1_763_700_000_000) -> None:
        self.at_ms, self.up_ms = now_ms, 0

    def now_ms(self) -> int:
        return self.at_ms

    def mono_ms(self) -> int:
        return self.up_ms

    def turn(self, by_ms: int) -> None:
        """Let time pass."""
        self.at_ms += by_ms
        self.up_ms += max(by_ms, 0)

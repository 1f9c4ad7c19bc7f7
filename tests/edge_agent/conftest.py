"""Fixtures of the edge: a ledger with a clock turned by hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.ledger.clock import Clock
from edge_agent.ledger.ledger import Ledger
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


@pytest.fixture
def clock() -> HandClock:
    """A clock turned by hand."""
    return HandClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test's ledger is."""
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path, clock: Clock) -> Iterator[Ledger]:
    """A new ledger of gateway gw-1, open for writing."""
    with Ledger.create(path, "gw-1", clock) as made:
        yield made

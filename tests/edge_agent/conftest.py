"""Fixtures of the edge: a ledger with a clock turned by hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.ledger.clock import Clock
from edge_agent.ledger.ledger import Ledger
from testbed.hand_clock import HandClock


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

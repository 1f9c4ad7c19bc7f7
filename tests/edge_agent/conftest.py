"""Fixtures of the edge: a ledger with a clock turned by hand, an agent process on a real broker."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from edge_agent.clock import Clock
from edge_agent.ledger import Ledger
from wire_protocol import names

READY = "listening_to_devices"
DEADLINE_S = 30.0


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


@dataclass
class AgentProcess:
    """An agent as an operating system process, to be stopped or killed."""

    ledger: Path
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log_file(self) -> Path:
        """What the agent wrote to standard error, of all its lives."""
        return self.ledger.with_name("agent.log")

    def log(self) -> list[dict[str, Any]]:
        """The agent's canonical log events."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]

    def start(self, ready: str = READY) -> Self:
        """Start it and wait until it listens."""
        before = self.log_file.read_text().count(f'"{ready}"') if self.log_file.exists() else 0
        command = [sys.executable, "-m", "stocktide", "edge", "run", "--ledger", str(self.ledger), *self.options]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, env=self.environment or None)
        wait_for(lambda: self.log_file.read_text().count(f'"{ready}"') > before or self.process.poll() is not None)
        assert self.process.poll() is None, self.log_file.read_text()
        return self

    def kill(self) -> None:
        """SIGKILL: no farewell, no commit."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)


@pytest.fixture
def agents() -> Iterator[Callable[..., AgentProcess]]:
    """Make agents; whatever is left of them is killed after the test."""
    made: list[AgentProcess] = []

    def make(ledger: Path, *options: str, **environment: str) -> AgentProcess:
        made.append(AgentProcess(ledger, list(options), os.environ | environment))
        return made[-1]

    yield make
    for agent in made:
        if agent.process is not None and agent.process.poll() is None:
            agent.kill()


def wait_for(condition: Callable[[], bool], *, timeout_s: float = DEADLINE_S) -> None:
    """Wait for a fact in another process; there is no event to wait for across processes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)

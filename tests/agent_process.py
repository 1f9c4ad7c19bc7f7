"""The edge agent as an operating system process, to be stopped or killed."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from testbed.eventually import eventually

READY = "listening_to_devices"


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
        eventually(lambda: self.log_file.read_text().count(f'"{ready}"') > before or self.process.poll() is not None)
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

"""The edge agent as an operating system process, to be stopped or killed."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from testbed.child_process import ChildProcess
from testbed.eventually import eventually

READY = "listening_to_devices"


@dataclass
class AgentProcess(ChildProcess):
    """One `stocktide edge run`; without an `environment` it has ours. `fresh` is for what measures it."""

    ledger: Path
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    fresh: bool = False

    @property
    def log_file(self) -> Path:
        """What the agent wrote to standard error, in all its lives."""
        return self.ledger.with_name("agent.log")

    def log(self) -> list[dict[str, Any]]:
        """The agent's canonical log events."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]

    def start(self, ready: str = READY) -> Self:
        """Start it and wait until it listens."""
        before = self.times(ready) if self.log_file.exists() else 0
        command = ["edge", "run", "--ledger", str(self.ledger), *self.options]
        with self.log_file.open("ab") as log:
            self.start_process(command, log, self.environment or os.environ, fresh=self.fresh)
        eventually(lambda: self.times(ready) > before or not self.is_running, f"the agent logs {ready}")
        assert self.is_running, self.log_file.read_text()
        return self

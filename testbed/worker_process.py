"""An ingest worker as an operating system process, to be stopped or killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, TypeAlias

# A worker in service waits longer before it looks for free shards, and before it connects again; a test need not.
IMPATIENT: Final = {"STOCKTIDE_LEASE_POLL_S": "0.2", "STOCKTIDE_RECONNECT_DELAY_S_MAX": "1"}
KILL_S_MAX: Final = 30.0
STOP_S_MAX: Final = 60.0


@dataclass
class WorkerProcess:
    """One `stocktide cloud ingest`; `environment` is added to what every worker of a test is given."""

    name: str
    database_url: str
    mqtt_url: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log_file(self) -> Path:
        """What the worker wrote, in all its lives."""
        return self.folder / f"{self.name}.log"

    def times(self, event: str) -> int:
        """How often the worker has logged an event, in all its lives."""
        return self.log_file.read_text().count(f'"{event}"')

    def start(self) -> Self:
        """Start it; nothing is waited for, the gateways must cope."""
        own = {"STOCKTIDE_DATABASE_URL": self.database_url, "STOCKTIDE_MQTT_URL": self.mqtt_url}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stocktide", "cloud", "ingest", "--worker-name", self.name],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | IMPATIENT | own | self.environment,
            )  # fmt: skip
        return self

    def kill(self) -> None:
        """SIGKILL: the transaction is rolled back, the leases vanish with the session. Nothing happens to the dead."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(KILL_S_MAX)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S_MAX)


# Makes a started worker: `worker("one", database_url, mqtt_url, STOCKTIDE_…="…")`.
Workers: TypeAlias = Callable[..., WorkerProcess]

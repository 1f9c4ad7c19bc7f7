"""An ingest worker as an operating system process, to be stopped or killed."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, TypeAlias

from testbed.child_process import ChildProcess

# A worker in service waits longer before it looks for free shards, and before it connects again; a test need not.
IMPATIENT: Final = {"STOCKTIDE_LEASE_POLL_S": "0.2", "STOCKTIDE_RECONNECT_DELAY_S_MAX": "1"}


@dataclass
class WorkerProcess(ChildProcess):
    """One `stocktide cloud ingest`; `environment` is added to what every worker of a test is given."""

    name: str
    database_url: str
    mqtt_url: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log_file(self) -> Path:
        """What the worker wrote, in all its lives."""
        return self.folder / f"{self.name}.log"

    def start(self) -> Self:
        """Start it; nothing is waited for, the gateways must cope."""
        own = {"STOCKTIDE_DATABASE_URL": self.database_url, "STOCKTIDE_MQTT_URL": self.mqtt_url}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stocktide", "cloud", "ingest", "--worker-name", self.name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | IMPATIENT | own | self.environment,
            )
        return self


# Makes a started worker: `worker("one", database_url, mqtt_url, STOCKTIDE_…="…")`.
Workers: TypeAlias = Callable[..., WorkerProcess]

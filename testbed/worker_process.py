"""An ingest worker as an operating system process, to be stopped or killed."""

import os
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
    fresh: bool = False

    @property
    def log_file(self) -> Path:
        """What the worker wrote, in all its lives."""
        return self.folder / f"{self.name}.log"

    def start(self) -> Self:
        """Start it; nothing is waited for, the gateways must cope."""
        own = {"STOCKTIDE_DATABASE_URL": self.database_url, "STOCKTIDE_MQTT_URL": self.mqtt_url}
        command = ["cloud", "ingest", "--worker-name", self.name]
        with self.log_file.open("ab") as log:
            self.start_process(command, log, os.environ | IMPATIENT | own | self.environment, fresh=self.fresh)
        return self


# Makes a started worker: `worker("one", database_url, mqtt_url, STOCKTIDE_…="…")`.
Workers: TypeAlias = Callable[..., WorkerProcess]

"""A cloud that enrols gateways, as an operator and a technician speak to it."""

import json
import os
import subprocess
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.ledger import database, queries
from testbed import warm_process
from testbed.brokers import FleetBrokers
from testbed.worker_process import WorkerProcess


def waiting(ledger: Path) -> int:
    """Entries that the cloud has not acknowledged."""
    with closing(database.open_reader(ledger)) as reader:
        return int(queries.status(reader, ledger)["streams"]["ledger"]["waiting"])


@dataclass
class Cloud:
    """What the tests of this folder talk to; `tenant` has one site, berlin."""

    brokers: FleetBrokers
    database_url: str
    tenant: str
    worker: WorkerProcess
    folder: Path

    def run(
        self, *command: str, text: str = "", code: int = 0, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command of stocktide and assert its exit code."""
        own = {"STOCKTIDE_DATABASE_URL": self.database_url}
        done = warm_process.run(*command, text=text, environment=os.environ | own | environment)
        assert done.returncode == code, (command, done.returncode, done.stdout, done.stderr)
        return done

    def claim(self, gateway: str, *options: str) -> str:
        """Make a claim and return its code."""
        done = self.run(
            "cloud", "gateway", "claim", gateway, "--tenant", self.tenant, "--site", "berlin", "--json", *options
        )
        code: str = json.loads(done.stdout)["claim"]
        return code

    def enroll(self, code: str, ledger: Path, *options: str, exit_code: int = 0) -> dict[str, Any]:
        """Enrol and return what the command says in JSON; the claim goes through standard input."""
        done = self.run(
            "edge",
            "enroll",
            "-",
            "--broker",
            self.brokers.claims_url,
            "--ca-file",
            str(self.brokers.authority.bundle),
            "--ledger",
            str(ledger),
            "--json",
            *options,
            text=f"{code}\n",
            code=exit_code,
        )
        answer: dict[str, Any] = json.loads(done.stdout if exit_code == 0 else done.stderr.splitlines()[-1])
        return answer

    def revoke(self, gateway: str) -> dict[str, Any]:
        """Revoke a gateway."""
        done = self.run(
            "cloud",
            "gateway",
            "revoke",
            gateway,
            "--json",
            STOCKTIDE_CA_DIR=str(self.brokers.authority.directory),
            STOCKTIDE_MQTT_URL=self.brokers.worker_url,
            STOCKTIDE_BROKER_RELOAD_COMMAND=self.brokers.reload_command,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

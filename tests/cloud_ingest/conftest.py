"""Ingest workers as processes that can be killed, and a site of gateways whose stock the oracle knows."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pytest

from bench.gateways import Fleet, LoadGateway, epoch
from bench.workload import Sealer, Warehouse
from cloud_store.base.connection import Connection, connect
from cloud_store.reports import snapshots
from cloud_store.tenancy import registry
from wire_protocol import stock
from wire_protocol.entries import LedgerEntry
from wire_protocol.replication import SenderLimits
from wire_protocol.stock import EntryKey

# Real gateways wait seconds before they send again; a test need not.
IMPATIENT = SenderLimits(resend_delay_ms=300, resend_delay_ms_max=1_000)


@dataclass
class WorkerProcess:
    """One `stocktide cloud ingest`."""

    name: str
    environment: dict[str, str]
    log_file: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> "WorkerProcess":
        """Start it; nothing is waited for, the gateways must cope."""
        command = [sys.executable, "-c", "from cloud_cli.app import app; app()", "ingest"]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--worker-name", self.name],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | self.environment,
            )  # fmt: skip
        return self

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


Workers = Callable[..., WorkerProcess]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Workers]:
    """Make started workers: `worker("one", database_url, mqtt_url)`; all are killed at the end."""
    with ExitStack() as processes:

        def make(name: str, database_url: str, mqtt_url: str, **settings: str) -> WorkerProcess:
            environment = {"STOCKTIDE_DATABASE_URL": database_url, "STOCKTIDE_MQTT_URL": mqtt_url}
            environment |= {"STOCKTIDE_LEASE_POLL_S": "0.2"} | settings
            made = WorkerProcess(name, environment, tmp_path / f"{name}.log").start()
            processes.callback(made.kill)
            return made

        yield make


@dataclass
class Site:
    """A tenant with one site, its gateways, and everything that they have written."""

    database_url: str
    prefix: str
    gateways: list[LoadGateway] = field(default_factory=list)
    entries: list[tuple[EntryKey, LedgerEntry]] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """How many frames the gateways have sealed."""
        return sum(len(gateway.frames) for gateway in self.gateways)

    def add_gateway(self, frames: int, entries_per_frame: int = 40, limits: SenderLimits = IMPATIENT) -> LoadGateway:
        """Register a gateway that has sealed so many frames, one entry in twenty a count."""
        number = len(self.gateways)
        name = f"{self.prefix}-{number}"
        with closing(connect(self.database_url, application="test")) as connection:
            registry.add_gateway(connection, self.prefix, "berlin", name)
        ledger = Warehouse(number, int(time.time() * 1000) - 3_600_000, counts=0.05).entries()
        sealer, sealed, seq = Sealer(name, epoch()), [], 0
        for _ in range(frames):
            run = list(islice(ledger, entries_per_frame))
            sealed.append(sealer.seal(run))
            self.entries += [(EntryKey(entry.hlc, name, epoch(), seq + n), entry) for n, entry in enumerate(run, 1)]
            seq += len(run)
        gateway = LoadGateway(name, epoch(), sealed, limits=limits)
        self.gateways.append(gateway)
        return gateway

    def fleet(self, mqtt_url: str, mqtt_version: str = "5") -> Fleet:
        """The gateways, to be connected."""
        return Fleet(mqtt_url, self.gateways, mqtt_version=mqtt_version)

    def require_agreement(self) -> None:
        """Assert that the cloud has every entry once, and the stock that the oracle makes of them."""
        with closing(connect(self.database_url, application="test")) as connection:
            self._require_agreement(connection)

    def _require_agreement(self, connection: Connection) -> None:
        expected = stock.oracle(self.entries)
        rows = [row for row in snapshots.entries(connection) if row.tenant == self.prefix]
        assert sum(row.rows for row in rows) == sum(row.distinct for row in rows) == len(self.entries)
        found = snapshots.balances(connection, self.prefix, "berlin")
        assert list(stock.differences(found.items(), expected.on_hand.items())) == []
        assert snapshots.variances(connection, self.prefix, "berlin") == expected.variance
        assert snapshots.imbalance(connection) == {}


@pytest.fixture
def site_at(unique_name: Callable[..., str]) -> Callable[[str], Site]:
    """Make a site in a migrated database."""

    def make(database_url: str) -> Site:
        made = Site(database_url, unique_name("acme"))
        with closing(connect(database_url, application="test")) as connection:
            registry.add_tenant(connection, made.prefix)
            registry.add_site(connection, made.prefix, "berlin")
        return made

    return make

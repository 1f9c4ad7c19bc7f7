"""The whole path on real servers: agents, brokers, workers and TimescaleDB, each a process that can be killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cloud_store import migrations, registry
from cloud_store.connection import connect
from edge_agent import database, queries
from edge_agent.clock import SystemClock
from edge_agent.ledger import Ledger
from edge_agent.sql import statement
from stocktide.demo.plan import Site
from stocktide.demo.proof import Proof, prove
from tests.agent_process import AgentProcess, wait_for
from tests.edge_agent.devices import Scanner
from tests.services import PrivateBroker, PrivateDatabase


@dataclass
class Worker:
    """An ingest worker as an operating system process."""

    name: str
    database_url: str
    mqtt_url: str
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log_file(self) -> Path:
        """What the worker wrote."""
        return self.folder / f"{self.name}.log"

    def start(self) -> "Worker":
        """Start it, without waiting for anything: gateways must cope."""
        environment = {"STOCKTIDE_DATABASE_URL": self.database_url, "STOCKTIDE_MQTT_URL": self.mqtt_url}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stocktide", "cloud", "ingest", "--worker-name", self.name],
                stdout=log, stderr=log, env=os.environ | environment,
            )  # fmt: skip
        return self

    def kill(self) -> None:
        """SIGKILL: the transaction is rolled back, the leases vanish with the session."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@dataclass
class Gateway:
    """A gateway with its own broker, its agent and its scanners."""

    site: Site
    agent: AgentProcess
    broker: PrivateBroker
    scanners: list[Scanner]
    events: int = 0

    def scan(self, count: int) -> None:
        """Every scanner scans so many things."""
        for _ in range(count):
            for scanner in self.scanners:
                self.events += 1
                scanner.scan(f"1-{self.events}", sku=f"SKU-{self.events * 7919 % 40}", quantity=1 + self.events % 5)

    def register(self, devices: list[str]) -> None:
        """Let more devices speak here."""
        with closing(database.open_writer(self.agent.ledger)) as connection, database.transaction(connection):
            connection.executemany(statement("insert_device"), [(name, "device") for name in devices])

    def waiting(self) -> int:
        """Entries that the cloud has not acknowledged."""
        with closing(database.open_reader(self.agent.ledger)) as reader:
            return int(queries.status(reader, self.agent.ledger)["streams"]["ledger"]["waiting"])

    def receipts(self) -> int:
        """Events with a receipt."""
        return sum(len(scanner.committed) for scanner in self.scanners)

    def settle(self) -> None:
        """Wait until every event has its receipt (sent again as firmware does) and the cloud has every entry."""
        wait_for(self._all_receipts, timeout_s=60, explain=self._missing)
        wait_for(lambda: self.waiting() == 0, timeout_s=60)

    def _missing(self) -> str:
        pending = {scanner.name: sorted(scanner.pending)[:3] for scanner in self.scanners}
        return (
            f"for receipts: {self.receipts()} of {self.events}, refused {[s.refused for s in self.scanners]}, {pending}"
        )

    def _all_receipts(self) -> bool:
        for scanner in self.scanners:
            heard = len(scanner.committed)
            expected = self.events // len(self.scanners)
            # As firmware: again after silence. Sending again while receipts still come only makes the queue longer.
            if not scanner.wait_for_receipts(expected, timeout_s=2) and len(scanner.committed) == heard:
                scanner.resend()
        return not self.scanners or self.receipts() == self.events


@dataclass
class Stack:
    """Everything of one test."""

    cloud_broker: PrivateBroker
    database_url: str
    gateways: list[Gateway]
    workers: list[Worker]
    database: PrivateDatabase | None = None
    folder: Path = field(default_factory=Path)

    def prove(self) -> Proof:
        """Settle everything and compare devices, ledgers and cloud."""
        for gateway in self.gateways:
            gateway.settle()
        ledgers = {gateway.site: gateway.agent.ledger for gateway in self.gateways}
        return prove(self.database_url, ledgers, {g.site.gateway: (g.events, 0) for g in self.gateways})


Build = Callable[..., Stack]


@pytest.fixture
def build(
    tmp_path: Path,
    database_url: str,
    private_broker: Callable[..., PrivateBroker],
    private_database: Callable[..., PrivateDatabase],
    agents: Callable[..., AgentProcess],
    unique_name: Callable[..., str],
) -> Iterator[Build]:
    """Build a stack: two tenants, a gateway each, `workers` workers; on a private database when it is to be killed."""
    made: list[Worker] = []
    with ExitStack() as scanners:

        def make(*, workers: int = 1, own_database: bool = False) -> Stack:
            own = private_database() if own_database else None
            url = own.url if own else database_url
            if own:
                migrations.apply(url)
            broker = private_broker()
            gateways = []
            for _ in range(2):
                site = Site(unique_name("tenant"), unique_name("site"), unique_name(), "")
                gateways.append(
                    _gateway(
                        site,
                        folder=tmp_path,
                        url=url,
                        cloud=broker,
                        local=private_broker(persistent=True),
                        agents=agents,
                        scanners=scanners,
                    )
                )
            made.extend(Worker(f"worker-{number}", url, broker.url, tmp_path).start() for number in range(workers))
            return Stack(broker, url, gateways, list(made), own, tmp_path)

        yield make
    for worker in made:
        if worker.process is not None and worker.process.poll() is None:
            worker.kill()


def _gateway(
    site: Site,
    *,
    folder: Path,
    url: str,
    cloud: PrivateBroker,
    local: PrivateBroker,
    agents: Callable[..., AgentProcess],
    scanners: ExitStack,
) -> Gateway:
    with closing(connect(url, application="tests")) as connection:
        registry.add_tenant(connection, site.tenant)
        registry.add_site(connection, site.tenant, site.name)
        registry.add_gateway(connection, site.tenant, site.name, site.gateway)
    path = folder / site.gateway / "ledger.db"
    devices = [f"till-{number}" for number in (1, 2)]
    with (
        Ledger.create(path, site.gateway, SystemClock(), local_url=local.url, cloud_url=cloud.url) as ledger,
        database.transaction(ledger.connection),
    ):
        ledger.connection.executemany(statement("insert_device"), [(name, "scanner") for name in devices])
    agent = agents(path, STOCKTIDE_EDGE_RESEND_DELAY_MS="500", STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX="1").start()
    return Gateway(site, agent, local, [scanners.enter_context(Scanner(local.port, name)) for name in devices])

"""A gateway that was alone for weeks: a million entries wait, and the devices must not notice when the link is back."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from cloud_store.base.connection import connect
from cloud_store.reports import snapshots
from cloud_store.tenancy import registry
from edge_agent.ledger import database, queries
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.drafts import Draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from testbed.agent_process import AgentProcess
from testbed.eventually import eventually
from testbed.scanner import Scanner
from testbed.services import PrivateBroker

# `make long` does it with a million.
ENTRIES = int(os.environ.get("STOCKTIDE_TEST_ENTRIES", "400000"))
SHIPPED = 100_000
BATCH = 10_000
MEMORY_BYTES_MAX = 200 << 20


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.bound("edge_agent.ledger.writer.BATCH_JOBS_MAX")
def test_a_backlog_of_weeks_drains_while_devices_are_served(
    tmp_path: Path,
    private_broker: Callable[..., PrivateBroker],
    agents: Callable[..., AgentProcess],
    database_url: str,
    unique_name: Callable[..., str],
) -> None:
    """The uplink works through the backlog in bounded steps: receipts go on, and memory does not grow with it."""
    gateway, local, cloud = unique_name(), private_broker(persistent=True), private_broker()
    with closing(connect(database_url, application="tests")) as connection:
        registry.add_tenant(connection, "acme")
        registry.add_site(connection, "acme", "oslo")
        registry.add_gateway(connection, "acme", "oslo", gateway)
    path = tmp_path / "ledger.db"
    with Ledger.create(path, gateway, SystemClock(), local_url=local.url, cloud_url=cloud.url) as ledger:
        with database.transaction(ledger.connection):
            ledger.connection.execute(statement("insert_device"), ("till-1", "scanner"))
        accumulate(ledger)
    agent = agents(path)
    agent.fresh = True  # its memory is looked at
    agent.start()
    worker = subprocess.Popen(
        [sys.executable, "-m", "stocktide", "cloud", "ingest"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"STOCKTIDE_DATABASE_URL": database_url, "STOCKTIDE_MQTT_URL": cloud.url},
    )
    try:
        with closing(database.open_reader(path)) as reader, Scanner(local.port, "till-1") as scanner:

            def acknowledged() -> int:
                return int(queries.status(reader, path)["streams"]["ledger"]["acked_seq"])

            eventually(lambda: acknowledged() > 0)
            for number in range(500):
                scanner.scan(f"e-{number}")
            assert scanner.wait_for_receipts(500)
            assert acknowledged() < ENTRIES / 2, "there was no backlog any more"
            eventually(lambda: acknowledged() >= SHIPPED, within_s=90)
            assert psutil.Process(agent.child.pid).memory_info().rss < MEMORY_BYTES_MAX
            at_least = acknowledged()
    finally:
        worker.kill()
        worker.wait(60)
    with closing(connect(database_url, application="tests")) as connection:
        rows = [row for row in snapshots.entries(connection) if row.gateway == gateway]
    assert sum(row.rows for row in rows) == sum(row.distinct for row in rows) >= at_least


def accumulate(ledger: Ledger) -> None:
    """Weeks of scans, in big transactions that need not survive anything."""
    ledger.connection.execute("PRAGMA synchronous = OFF")
    for start in range(0, ENTRIES, BATCH):
        with database.transaction(ledger.connection):
            ledger.append(
                [
                    Draft(kind="receive", sku=f"SKU-{number % 500}", quantity=1, source="@supplier", destination="A-01")
                    for number in range(start, start + BATCH)
                ]
            )

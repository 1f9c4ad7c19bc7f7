"""The demo's way to a trusted gateway: the same commands, the embedded broker, and nothing to install beside it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker_config import passwords
from cloud_identity.authority import Authority
from cloud_store.base.connection import connect
from cloud_store.reports import snapshots
from cloud_store.tenancy import registry
from edge_agent.desk.booking import book
from edge_agent.identity.keystore import IdentityFolder
from testbed import warm_process
from testbed.agent_process import AgentProcess
from testbed.eventually import eventually
from testbed.services.server import HOST
from testbed.worker_process import Workers
from tests.enrolment.cloud import waiting
from wire_protocol.claims import ClaimCode

Name = Callable[..., str]
OLD = {"STOCKTIDE_MQTT_VERSION": "3.1.1"}


@dataclass
class Small:
    """A folder with an authority and its files, and the embedded broker that reads them."""

    folder: Path
    environment: dict[str, str]
    process: "subprocess.Popen[str] | None" = None

    def run(self, *command: str, text: str = "") -> dict[str, Any]:
        """Run a command of stocktide and return its answer in JSON."""
        done = warm_process.run(*command, "--json", text=text, environment=os.environ | self.environment)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def serve(self, claims: list[str]) -> dict[str, str]:
        """Start the broker for these claims; returns the addresses of its doors."""
        codes = [ClaimCode.parse(claim) for claim in claims]
        file = self.folder / "claims"
        passwords.write(file, {code.name: passwords.hashed(code.secret) for code in codes})
        files = {
            "cafile": "ca/bundle.pem",
            "crlfile": "ca/crl.pem",
            "certfile": "server.pem",
            "keyfile": "server.key",
            "claims": "claims",
        }
        ports = ["--gateway-port=0", "--claims-port=0", "--worker-port=0"]
        named = [f"--{name}={self.folder / file}" for name, file in files.items()]
        command = [sys.executable, "-m", "stocktide", "broker", "run-fleet", *named, *ports, "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        addresses: dict[str, str] = json.loads(self.process.stdout.readline())
        return addresses


@pytest.fixture
def small(tmp_path: Path, database_url: str) -> Iterator[Small]:
    made = Small(
        tmp_path,
        OLD
        | {
            "STOCKTIDE_DATABASE_URL": database_url,
            "STOCKTIDE_CA_DIR": str(tmp_path / "ca"),
            "STOCKTIDE_MQTT_CA_FILE": str(tmp_path / "ca" / "bundle.pem"),
            "STOCKTIDE_MQTT_CERT_FILE": str(tmp_path / "worker.pem"),
            "STOCKTIDE_MQTT_KEY_FILE": str(tmp_path / "worker.key"),
        },
    )
    Authority.create(tmp_path / "ca", "Stocktide test")
    made.run("cloud", "ca", "server", HOST, "--out", str(tmp_path))
    made.run("cloud", "ca", "worker", "--out", str(tmp_path))
    made.run("cloud", "ca", "crl")
    yield made
    if made.process is not None:
        made.process.send_signal(signal.SIGTERM)
        made.process.communicate(timeout=20)


def test_a_claim_makes_a_gateway_that_ships_until_it_is_revoked(
    small: Small,
    database_url: str,
    tmp_path: Path,
    worker: Workers,
    agents: Callable[..., AgentProcess],
    unique_name: Name,
) -> None:
    """What `make demo` shows must be the product: enrolment, mutual TLS in both directions, and the way out again."""
    tenant, gateway, ledger = unique_name("acme"), unique_name(), tmp_path / "edge" / "ledger.db"
    with closing(connect(database_url, application="test")) as connection:
        registry.add_tenant(connection, tenant)
        registry.add_site(connection, tenant, "berlin")
    code = small.run("cloud", "gateway", "claim", gateway, "--tenant", tenant, "--site", "berlin")["claim"]
    addresses = small.serve([code])
    cloud = worker(
        "one",
        database_url,
        addresses["workers"],
        STOCKTIDE_GATEWAY_BROKERS=addresses["gateways"],
        **small.environment,
    )
    done = small.run(
        "edge",
        "enroll",
        "-",
        "--broker",
        addresses["claims"],
        "--ca-file",
        str(tmp_path / "ca" / "bundle.pem"),
        "--ledger",
        str(ledger),
        "--mqtt-version",
        "3.1.1",
        text=f"{code}\n",
    )
    assert done["brokers"] == [addresses["gateways"]]
    book(ledger, "receive", "TEA", 5, destination="A-01")
    agent = agents(ledger, "--mqtt-version", "3.1.1").start("uplink_up")
    eventually(lambda: waiting(ledger) == 0, explain=lambda: cloud.log_file.read_text()[-2000:])

    assert small.process is not None
    small.environment |= {
        "STOCKTIDE_MQTT_URL": addresses["workers"],
        "STOCKTIDE_BROKER_RELOAD_COMMAND": f"kill -HUP {small.process.pid}",
    }
    assert small.run("cloud", "gateway", "revoke", gateway)["evicted"]
    asyncio.run(_stays_out(addresses["gateways"], ledger))
    book(ledger, "receive", "TEA", 1, destination="A-01")
    assert agent.is_running  # it goes on working for its devices
    with closing(connect(database_url, application="test")) as connection:
        assert [row.rows for row in snapshots.entries(connection) if row.tenant == tenant] == [1]
    assert waiting(ledger) == 1


async def _stays_out(address: str, ledger: Path) -> None:
    """With the revoked certificate the handshake does not come about."""
    port = int(address.rpartition(":")[2])
    reader, writer = await asyncio.open_connection(HOST, port, ssl=IdentityFolder.beside(ledger).tls())
    async with asyncio.timeout(5):
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    writer.transport.abort()

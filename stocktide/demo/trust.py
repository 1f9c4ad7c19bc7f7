"""Whom the demo's cloud trusts: its authority, its broker over TLS alone, and gateways that enrol by claim.

Every step is a command of the product, as an operator and a technician would type it; a claim's secret goes to the
gateway by standard input and to the broker as a hash.
"""

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

from stocktide.demo.plan import DemoSite
from stocktide.demo.processes import Processes
from stocktide.demo.servers import HOST, free_port
from wire_protocol.claims import ClaimCode


@dataclass(slots=True)
class Trust:
    """The authority in a folder, the cloud's broker with its three doors, and the claims that wait."""

    folder: Path
    processes: Processes
    gateway_port: int = field(default_factory=free_port)
    claims_port: int = field(default_factory=free_port)
    worker_port: int = field(default_factory=free_port)
    claims: dict[DemoSite, str] = field(default_factory=dict)

    @property
    def bundle(self) -> Path:
        """The authorities that gateways, workers and the broker trust."""
        return self.folder / "ca" / "bundle.pem"

    @property
    def gateways_url(self) -> str:
        """Where enrolled gateways connect."""
        return f"mqtts://{HOST}:{self.gateway_port}"

    def worker_environment(self) -> dict[str, str]:
        """A worker's settings: the broker, its own certificate there, and how it signs."""
        return {
            "STOCKTIDE_MQTT_URL": f"mqtts://{HOST}:{self.worker_port}",
            "STOCKTIDE_MQTT_VERSION": "3.1.1",
            "STOCKTIDE_MQTT_CA_FILE": str(self.bundle),
            "STOCKTIDE_MQTT_CERT_FILE": str(self.folder / "worker.pem"),
            "STOCKTIDE_MQTT_KEY_FILE": str(self.folder / "worker.key"),
            "STOCKTIDE_CA_DIR": str(self.folder / "ca"),
            "STOCKTIDE_GATEWAY_BROKERS": self.gateways_url,
        }

    async def make_authority(self) -> None:
        """The authority, and the certificates of the broker and of the worker."""
        files = ["--ca-dir", str(self.folder / "ca")]
        await self.processes.run("cloud", "ca", "init", *files)
        files += ["--out", str(self.folder)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.processes.run("cloud", "ca", "server", HOST, *files))
            tasks.create_task(self.processes.run("cloud", "ca", "worker", *files))

    async def claim(self, site: DemoSite, environment: dict[str, str]) -> None:
        """Make a claim for a site's gateway, which registers it."""
        made = await self.processes.run(
            "cloud",
            "gateway",
            "claim",
            site.gateway,
            "--tenant",
            site.tenant,
            "--site",
            site.name,
            "--json",
            **environment,
        )
        self.claims[site] = json.loads(made)["claim"]

    async def start_broker(self, environment: dict[str, str]) -> None:
        """The cloud's broker, once the claims are made that it is to let in."""
        from broker_config import passwords

        await self.processes.run("cloud", "ca", "crl", "--ca-dir", str(self.folder / "ca"), **environment)
        codes = [ClaimCode.parse(claim) for claim in self.claims.values()]
        claims = self.folder / "claims.passwords"
        passwords.write(claims, {code.name: passwords.hashed(code.secret) for code in codes})
        await self.processes.start(
            "broker-cloud",
            "broker",
            "run-fleet",
            "--cafile",
            str(self.bundle),
            "--certfile",
            str(self.folder / "server.pem"),
            "--keyfile",
            str(self.folder / "server.key"),
            "--crlfile",
            str(self.folder / "ca" / "crl.pem"),
            "--claims",
            str(claims),
            "--gateway-port",
            str(self.gateway_port),
            "--claims-port",
            str(self.claims_port),
            "--worker-port",
            str(self.worker_port),
            ready="listening on",
        )

    async def enrol(self, site: DemoSite, ledger: Path) -> None:
        """Use a site's claim on its gateway: a key made there, a certificate for it, the broker's address."""
        await self.processes.run(
            "edge",
            "enroll",
            "-",
            "--broker",
            f"mqtts://{HOST}:{self.claims_port}",
            "--ca-file",
            str(self.bundle),
            "--ledger",
            str(ledger),
            "--mqtt-version",
            "3.1.1",
            text=f"{self.claims[site]}\n",
        )

"""Everything at once: mutated messages on every channel to a real worker and a real agent, which are killed meanwhile.

A hostile gateway and a hostile device publish; after each round it is asked: is everybody alive, is another tenant's
gateway acknowledged, does an honest device get its receipt, is the ledger whole? At the end the other tenant's stock
must be the oracle's. `make fuzz ARGS="--seconds 600 everything"`, or `python -m fuzz.everything` with a `--seed`.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from random import Random
from typing import Final, Self

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from cloud_store.base import migrations
from cloud_store.base.connection import connect
from cloud_store.tenancy import registry
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from fuzz.decoders import samples
from fuzz.mutations import mutations
from testbed.agent_process import AgentProcess
from testbed.eventually import eventually
from testbed.gateways import Fleet, epoch
from testbed.scanner import Scanner
from testbed.services import PrivateBroker, PrivateDatabase
from testbed.worker_process import WorkerProcess
from testbed.workload import Sealer, Warehouse
from tests.cloud_ingest.sites import Site
from wire_protocol import topics
from wire_protocol.messages import CertificateRequest, ClaimRequest
from wire_protocol.topics import Channel

ROUND_MESSAGES: Final = 120
WITHIN_S: Final = 30.0
GOOD_FRAMES: Final = 2_000
GOOD_ENTRIES: Final = 3  # in each
EVIL_GATEWAYS: Final = 60
EVEN: Final = 0.5
AGENT: Final = "gw-attacked"
IMPATIENT: Final = {
    "STOCKTIDE_EDGE_RESEND_DELAY_MS": "500",
    "STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX": "1",
    "STOCKTIDE_EDGE_FILE_CHECK_INTERVAL_S": "5",
}
# Which samples go on which channels.
UP: Final[dict[Channel, str]] = {
    Channel.LEDGER: "frame",
    Channel.READINGS: "frame",
    Channel.STATUS: "GatewayStatus",
    Channel.REPORTED_TWIN: "ReportedTwin",
    Channel.REPLY: "Reply",
    Channel.SITE_REQUEST: "SiteRequest",
    Channel.CATALOG_REQUEST: "CatalogRequest",
    Channel.CERTIFICATE_REQUEST: "CertificateRequest",
    Channel.FIRMWARE_REQUEST: "FirmwareRequest",
}
DOWN: Final[dict[Channel, str]] = {
    Channel.ACK: "Ack",
    Channel.DESIRED_TWIN: "DesiredTwin",
    Channel.SITE_LEDGER: "site",
    Channel.CATALOG: "CatalogPage",
    Channel.COMMAND: "Command",
    Channel.CERTIFICATE: "CertificateResponse",
    Channel.FIRMWARE: "image",
}
DEVICE: Final[dict[Channel, str]] = {
    Channel.DEVICE_EVENT: "DeviceEvent",
    Channel.DEVICE_READING: "DeviceReading",
    Channel.DEVICE_STATUS: "DeviceStatus",
    Channel.DEVICE_FIRMWARE_REQUEST: "FirmwareRequest",
}


class Broken(AssertionError):
    """Something that must hold did not; the message names the seed that does it again."""


@dataclass
class Sender:
    """A hostile client of one broker."""

    port: int
    _client: Client = field(init=False)

    def __enter__(self) -> Self:
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.max_queued_messages_set(0)
        self._client.connect("127.0.0.1", self.port)
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def send(self, messages: list[tuple[str, bytes]]) -> None:
        """Publish, and wait until the broker has the last."""
        sent = [self._client.publish(topic, payload, qos=1) for topic, payload in messages]
        sent[-1].wait_for_publish(WITHIN_S)


@dataclass
class Attack:
    """What is sent, from a seed."""

    random: Random

    def __post_init__(self) -> None:
        made: dict[str, list[bytes]] = samples() | {
            "CertificateRequest": [CertificateRequest(csr_pem="-----BEGIN", nonce="n-1").encode()],
            "CertificateResponse": [
                b'{"v":1,"nonce":"n-1","gateway":"gw-attacked","certificate_pem":"x","ca_pem":"y"}'
            ],
        }
        self._senders = [f"evil-{number}" for number in range(EVIL_GATEWAYS)]
        self._made = made
        self._variants: dict[tuple[str, int], Iterator[bytes]] = {}
        self._frames = cycle(self._senders)

    def to_cloud(self) -> list[tuple[str, bytes]]:
        """A round of messages for the worker, and of what comes down to the agent."""
        messages = []
        for _ in range(ROUND_MESSAGES):
            kind = self.random.random()
            if kind < 0.3:  # noqa: PLR2004 - a share
                messages += self._log_of(next(self._frames))
            elif kind < 0.7:  # noqa: PLR2004
                channel = self.random.choice(list(UP))
                gateway = self.random.choice(
                    [*self._senders, AGENT] if channel is not Channel.STATUS else self._senders
                )
                messages.append((topics.link(gateway, channel), self._variant(UP[channel])))
            elif kind < 0.75:  # noqa: PLR2004
                claim = ClaimRequest(secret="s" * 24, csr_pem="x", nonce="n").encode()
                messages.append((f"{topics.ROOT}/claim/{'c' * 8}/request", self._mutated(claim)))
            else:
                channel = self.random.choice(list(DOWN))
                messages.append((topics.link(AGENT, channel), self._variant(DOWN[channel])))
        return messages

    def to_agent(self) -> list[tuple[str, bytes]]:
        """A round of messages for the agent's devices' side."""
        messages = []
        for number in range(ROUND_MESSAGES):
            channel = self.random.choice(list(DEVICE))
            payload = self._variant(DEVICE[channel])
            fresh = f'"id":"{self.random.getrandbits(32)}-{number}"'.encode()
            messages.append((topics.device("evil", channel), payload.replace(b'"id":"1-1"', fresh)))
        return messages

    def _log_of(self, gateway: str) -> list[tuple[str, bytes]]:
        """Two frames of a new log whose envelopes are whole: extremes inside come as far as the database."""
        warehouse = Warehouse(self.random.randrange(1000), int(time.time() * 1000), counts=0.3).entries()
        sealer = Sealer(gateway, epoch(self.random.getrandbits(30)))
        entries = [next(warehouse) for _ in range(4)]
        body = sealer.seal(entries)
        return [
            (topics.up(gateway, "ledger"), self._mutated(body)),
            (topics.up(gateway, "ledger"), sealer.seal(entries)),
        ]

    def _variant(self, name: str) -> bytes:
        number = self.random.randrange(len(self._made[name]))
        if (name, number) not in self._variants:
            self._variants[name, number] = mutations(self._made[name][number], self.random)
        return next(self._variants[name, number])

    def _mutated(self, payload: bytes) -> bytes:
        return next(mutations(payload, self.random))


@dataclass
class Everything:
    """The whole path under attack.

    Args:
        folder: where files go.
        database_url: a migrated database.
        seed: makes the same messages, and kills in the same rounds.
    """

    folder: Path
    database_url: str
    seed: int

    async def run(self, seconds: float) -> int:
        """Attack for so long. Returns how many messages were sent.

        Raises:
            Broken: something that must hold did not.
        """
        random, ends_s, sent = Random(self.seed), time.monotonic() + seconds, 0  # noqa: S311 - repeatable, no secret
        attack = Attack(random)
        async with AsyncExitStack() as stack:
            broker, local = (stack.enter_context(PrivateBroker(persistent=True)) for _ in range(2))
            site = self._registered()
            path = self.folder / "ledger.db"
            with (
                Ledger.create(path, AGENT, SystemClock(), local_url=local.url, cloud_url=broker.url) as made,
                database.transaction(made.connection),
            ):
                for device in ("evil", "honest"):
                    made.connection.execute(statement("insert_device"), (device, "scanner"))
            worker = WorkerProcess("worker", self.database_url, broker.url, self.folder).start()
            stack.callback(lambda: worker.kill() if worker.is_running else None)
            agent = AgentProcess(path, environment=_environment()).start()
            stack.callback(lambda: agent.kill() if agent.is_running else None)
            cloud = stack.enter_context(Sender(broker.port))
            devices = stack.enter_context(Sender(local.port))
            scanner = stack.enter_context(Scanner(local.port, "honest"))
            fleet = await stack.enter_async_context(site.fleet(broker.url))
            for number in count(1):
                if time.monotonic() > ends_s:
                    break
                batches = attack.to_cloud(), attack.to_agent()
                sent += sum(map(len, batches))
                await asyncio.to_thread(cloud.send, batches[0])
                await asyncio.to_thread(devices.send, batches[1])
                if number % 3 == 0:
                    victim = worker if random.random() < EVEN else agent
                    self._require(victim.is_running, f"round {number}: {victim.log_file.name} has ended", victim)
                    victim.kill()
                    await asyncio.to_thread(victim.start)
                for process in (worker, agent):
                    self._require(process.is_running, f"round {number}: {process.log_file.name} has ended", process)
                await self._require_served(number, site, fleet, worker)
                await asyncio.to_thread(self._require_receipt, number, scanner, agent)
                await asyncio.to_thread(self._require_whole, number, path)
            del site.entries[site.frames * GOOD_ENTRIES :]  # what was never sealed
            await fleet.settled(WITHIN_S)
        site.require_agreement()
        return sent

    def _registered(self) -> Site:
        site = Site(self.database_url, "good")
        with closing(connect(self.database_url, application="fuzz")) as connection:
            for tenant in ("good", "evil"):
                registry.add_tenant(connection, tenant)
                registry.add_site(connection, tenant, "berlin")
            for gateway in (AGENT, *(f"evil-{number}" for number in range(EVIL_GATEWAYS))):
                registry.add_gateway(connection, "evil", "berlin", gateway)
        site.add_gateway(GOOD_FRAMES, held=GOOD_FRAMES - 1, entries_per_frame=GOOD_ENTRIES)
        return site

    async def _require_served(self, number: int, site: Site, fleet: Fleet, worker: WorkerProcess) -> None:
        site.release(fleet, 1)
        try:
            await fleet.settled(WITHIN_S)
        except TimeoutError:
            self._require(False, f"round {number}: another tenant was not acknowledged", worker)

    def _require_receipt(self, number: int, scanner: Scanner, agent: AgentProcess) -> None:
        event = f"honest-{number}"
        scanner.scan(event)
        answered = eventually(
            lambda: event in scanner.committed or event in scanner.refused or scanner.has_receipts(1 << 30) or None,
            f"seed {self.seed}, round {number}: an honest device gets a receipt",
            within_s=WITHIN_S,
            explain=lambda: agent.log_file.read_text()[-3_000:],
        )
        assert answered  # noqa: S101

    def _require_whole(self, number: int, path: Path) -> None:
        command = [sys.executable, "-m", "stocktide", "edge", "ledger", "verify", "--ledger", str(path), "--json"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise Broken(f"seed {self.seed}, round {number}: the ledger is not whole: {done.stdout}{done.stderr}")

    def _require(self, holds: bool, what: str, process: WorkerProcess | AgentProcess) -> None:  # noqa: FBT001
        if not holds:
            raise Broken(f"seed {self.seed}, {what}\n{process.log_file.read_text()[-6_000:]}")


def _environment() -> dict[str, str]:
    return os.environ | IMPATIENT


def main() -> None:
    """Attack servers of our own."""
    parser = argparse.ArgumentParser(prog="fuzz.everything", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000)
    arguments = parser.parse_args()
    print(f"everything: seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, PrivateDatabase() as server:
        migrations.apply(server.url)
        sent = asyncio.run(Everything(Path(folder), server.url, arguments.seed).run(arguments.seconds))
    print(f"everything: {sent} messages, held")


if __name__ == "__main__":
    main()

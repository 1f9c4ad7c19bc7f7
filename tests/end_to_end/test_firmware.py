"""Firmware on real servers and processes: from the operator's file to devices that run it, or are as they were."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from typer.testing import CliRunner

from cloud_cli.app import app as cloud
from cloud_store.provisioning import jobs
from edge_agent.ledger import database
from edge_agent.ledger.sql import statement
from edge_agent.provisioning import firmware
from firmware_sim.fleet import updatable
from firmware_sim.fleet.device import SimulatedDevice
from firmware_sim.fleet.link import LinkOptions
from firmware_sim.fleet.trust import TrustedKey
from firmware_sim.fleet.updates import NEVER_HEALTHY
from testbed.eventually import eventually
from tests.end_to_end.sites import SETTLE_S, Post, SiteStack
from tests.firmware_sim.images import MODEL, image
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.firmware import LINK_CHUNK_BYTES, FirmwareRequest
from wire_protocol.topics import Channel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
DEVICES = ("probe-1", "probe-2")
HEALTH_MS = 2_000


@dataclass
class Maker:
    """Who makes the devices: has the key, and adds releases to the cloud."""

    stack: SiteStack
    folder: Path

    def __post_init__(self) -> None:
        self.run("keygen", str(self.folder / "key.pem"), str(self.folder / "key.pub"), database=False)

    def run(self, *arguments: str, noun: str = "firmware", database: bool = True) -> Any:
        """Run `stocktide cloud` and return what it printed."""
        url = ["--database-url", self.stack.database_url] if database else []
        done = CliRunner().invoke(cloud, [noun, *arguments, *url, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    def add(self, version: str, body: bytes) -> None:
        """Add a version, and the way back from it."""
        file = self.folder / f"image-{version}"
        file.write_bytes(body)
        options = ["--tenant", self.stack.tenant, "--model", MODEL, "--version", version]
        self.run("add", str(file), *options, "--sign-key", str(self.folder / "key.pem"))

    def roll_out(self, version: str, *options: str) -> str:
        """Begin a job for the whole site."""
        made = self.run("create", "--tenant", self.stack.tenant, "--firmware", MODEL, version, *options, noun="job")
        return str(made["job"])

    @asynccontextmanager
    async def devices(self, post: Post) -> AsyncIterator[Sequence[SimulatedDevice]]:
        """Two devices at a gateway; at the end of the block their power is cut."""
        with closing(database.open_writer(post.agent.ledger)) as connection, database.transaction(connection):
            connection.executemany(statement("insert_device"), [(name, "probe") for name in DEVICES])
        trusted = TrustedKey.load(self.folder / "key.pub")
        units = [
            updatable.device(name, self.folder / post.name, trusted, model=MODEL, factory="1.0.0", health_ms=HEALTH_MS)
            for name in DEVICES
        ]
        broker = BrokerAddress.parse(post.broker.url)
        running = asyncio.create_task(updatable.run(units, broker, LinkOptions(reconnect_s_max=0.5), lambda _: None))
        try:
            await until(lambda: len(known(post)) == len(DEVICES))
            yield units
        finally:
            running.cancel()
            await asyncio.wait([running])


def known(post: Post) -> list[str]:
    """The devices that have said what they are; of others a gateway does not know that they should update."""
    with closing(database.open_reader(post.agent.ledger)) as reader:
        return [row.name for row in firmware.rows(reader)]


def versions(units: Sequence[SimulatedDevice]) -> list[str]:
    """What devices run."""
    return [unit.updater.version for unit in units if unit.updater is not None]


async def ended(stack: SiteStack, job: str) -> dict[str, Any]:
    """Wait for the end of a job."""

    def row() -> dict[str, Any]:
        return jobs.listing(stack.cloud, limit=1, job=job)[0]

    await asyncio.to_thread(
        eventually,
        lambda: row()["state"] != "running",
        within_s=2 * SETTLE_S,
        explain=lambda: f"{row()} {jobs.targets(stack.cloud, job, limit=9)}",
    )
    return row()


async def until(fact: Any, explain: Any = lambda: "") -> None:
    """Wait for a fact."""
    await asyncio.to_thread(eventually, fact, within_s=SETTLE_S, explain=explain)


async def test_a_good_release_goes_round_and_a_bad_one_stops_at_its_bound(site: SiteStack, tmp_path: Path) -> None:
    """The whole promise: waves, devices that roll back by themselves, a job that stops, and a signed way back."""
    maker = Maker(site, tmp_path)
    posts = [site.make() for _ in range(3)]
    async with AsyncExitStack() as context:
        units = [await context.enter_async_context(maker.devices(post)) for post in posts]
        maker.add("1.0.0", image("1.0.0"))
        maker.add("1.1.0", image("1.1.0", 100_000))
        done = await ended(site, maker.roll_out("1.1.0", "--waves", "1,100%", "--rollback"))
        assert (done["state"], done["succeeded"]) == ("done", 3), jobs.targets(site.cloud, done["job"], limit=9)
        assert [versions(each) for each in units] == [["1.1.0", "1.1.0"]] * 3
        # Scans go on meanwhile: nothing of this is in their way.
        for post in posts:
            post.scan(20)

        maker.add("1.2.0", image("1.2.0", line=NEVER_HEALTHY))
        bad = await ended(site, maker.roll_out("1.2.0", "--waves", "1,100%", "--rollback"))
        assert bad["state"] == "failed"
        assert "1 of 1 gateways of wave 1 failed" in bad["reason"]
        [first, *rest] = jobs.targets(site.cloud, bad["job"], limit=9)
        assert first["state"] == "rolled-back"
        assert "probe-1 rolled-back: not healthy within 2 s" in first["reason"]
        assert [row["state"] for row in rest] == ["waiting", "waiting"]
        assert [versions(each) for each in units] == [["1.1.0", "1.1.0"]] * 3

        # The fleet takes the next good one, those that failed before as well.
        maker.add("1.2.1", image("1.2.1"))
        last = maker.roll_out("1.2.1", "--waves", "100%")
        assert (await ended(site, last))["succeeded"] == 3, jobs.targets(site.cloud, last, limit=9)
        assert [versions(each) for each in units] == [["1.2.1", "1.2.1"]] * 3

        # An operator changes his mind after everything was healthy: the way back is an older version, signed.
        maker.add("1.3.0", image("1.3.0"))
        await ended(site, maker.roll_out("1.3.0", "--waves", "100%"))
        assert [versions(each) for each in units] == [["1.3.0", "1.3.0"]] * 3
        assert (await ended(site, maker.roll_out("1.2.1", "--waves", "1,100%")))["succeeded"] == 3
        assert [versions(each) for each in units] == [["1.2.1", "1.2.1"]] * 3
    await asyncio.to_thread(site.require_agreement)


async def test_whoever_is_killed_in_the_middle_goes_on_where_it_was(
    site: SiteStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway and its devices lose their power in the middle of a download, and fetch only what is missing."""
    monkeypatch.setenv("STOCKTIDE_FIRMWARE_CHUNKS_PER_S_MAX", "40")
    site.worker.kill()
    site.worker.start()
    maker, body = Maker(site, tmp_path), image("1.1.0", 3_000_000)
    post = site.make()
    maker.add("1.1.0", body)
    folder = post.agent.ledger.with_suffix(".firmware")

    def here() -> int:
        return sum(path.stat().st_size for path in folder.glob("*"))

    with Asks(site.broker.port, post.name) as asks:
        async with maker.devices(post) as units:
            job = maker.roll_out("1.1.0", "--waves", "100%")
            await until(lambda: here() > len(body) // 4, lambda: f"for {here()} bytes")
            post.agent.kill()
            kept = here()
            assert kept < len(body)
            before = len(asks.offsets)
            await asyncio.to_thread(post.agent.start)
            await until(lambda: len(asks.offsets) > before)
            assert asks.offsets[before] in {kept, kept // LINK_CHUNK_BYTES * LINK_CHUNK_BYTES}
            await until(lambda: here() == len(body) and bool(list(folder.glob("*.img"))))
            assert len(asks.offsets) <= len(body) // LINK_CHUNK_BYTES + 4
            await until(lambda: received(units) > len(body) // 4, lambda: f"for devices: {received(units)}")
        kept = received(units)
        assert kept < len(body)
        async with maker.devices(post) as units:
            assert received(units) >= kept
            done = await ended(site, job)
            assert (done["state"], done["succeeded"]) == ("done", 1)
            assert versions(units) == ["1.1.0", "1.1.0"]


def received(units: Sequence[SimulatedDevice]) -> int:
    """How much of an image the device that is furthest behind has fetched."""
    return min(unit.updater.flash.record().received for unit in units if unit.updater is not None)


class Asks:
    """What a gateway asks the cloud for."""

    def __init__(self, port: int, gateway: str) -> None:
        self.offsets: list[int] = []
        self._client = Client(CallbackAPIVersion.VERSION2)
        topic = topics.link(gateway, Channel.FIRMWARE_REQUEST)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_message = self._heard
        self._client.connect("127.0.0.1", port)

    def _heard(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        self.offsets.append(FirmwareRequest.decode(bytes(message.payload)).offset)

    def __enter__(self) -> Self:
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

"""A twin's change to ten thousand gateways by a selector: the operator's command, and until every one has reported it.

The gateways are one subscriber that answers for them all. Beside it, in the same run, the least time that the bound on
pushes admits: a fleet that is notified all at once would answer all at once.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from bench.cloud_worker import running_worker, until_subscribed
from cloud_ingest.settings import IngestSettings
from cloud_store.base import migrations
from cloud_store.base.connection import Connection, connect
from cloud_store.tenancy import registry
from mqtt_client import Connection as MqttConnection
from mqtt_client import ConnectionOptions
from mqtt_client import connect as mqtt_connect
from testbed import services
from testbed.eventually import eventually
from testbed.reported_twins import reported_twin
from testbed.services import PrivateBroker, databases
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.topics import Channel
from wire_protocol.twin import DesiredTwin

GATEWAYS: Final = 10_000
SITES: Final = 100
TENANT: Final = "bench"
PATCH: Final = {"devices": {"fridge-1": {"kind": "probe", "sampling_s": 60}}}


def run() -> dict[str, Any]:
    """Measure; seconds. Takes two minutes or so."""
    with databases.database(services.database_url(), f"bench_{time.time_ns()}") as url, PrivateBroker() as broker:
        migrations.apply(url)
        with closing(connect(url, application="bench")) as connection:
            _register(connection)
            with running_worker(url, broker.url):
                command_s, reported_s, told = asyncio.run(_roll_out(url, broker, connection))
            behind = connection.execute(
                "SELECT count(*) FROM twin WHERE reported_version IS DISTINCT FROM version"
            ).fetchone()
    assert behind == (0,), f"{behind} gateways are not where they should be"
    per_s = Counter(int(at_s) for at_s in told)
    floor_s = GATEWAYS / IngestSettings().twins_per_s_max
    return {
        "gateways": GATEWAYS,
        "command_s": command_s,
        "all_reported_s": reported_s,
        "least_by_the_bound_s": floor_s,
        "to_the_bound_ratio": reported_s / floor_s,
        "told_per_s_median": sorted(per_s.values())[len(per_s) // 2],
        "told_per_s_max": max(per_s.values()),
        "told_twice": len(told) - GATEWAYS,
    }


def _register(connection: Connection) -> None:
    registry.add_tenant(connection, TENANT)
    for site in range(SITES):
        registry.add_site(connection, TENANT, f"site-{site}")
    with connection.transaction():
        for number in range(GATEWAYS):
            registry.add_gateway(connection, TENANT, f"site-{number % SITES}", f"gw-{number:05}")


async def _roll_out(url: str, broker: PrivateBroker, connection: Connection) -> tuple[float, float, list[float]]:
    """Seconds that the command took, seconds until all have reported, and when each was told."""
    await until_subscribed(connection)
    told: list[float] = []
    options = ConnectionOptions(
        address=BrokerAddress.parse(broker.url), client_id="", incoming_max=0, inflight_max=1_000, calls_max=GATEWAYS
    )
    async with mqtt_connect(options) as client:
        await client.subscribe(f"{topics.ROOT}/+/+/{Channel.DESIRED_TWIN}")
        answering = asyncio.create_task(_answer(client, told))
        began = time.perf_counter()
        await asyncio.to_thread(_change, url)
        command_s = time.perf_counter() - began
        await asyncio.to_thread(eventually, lambda: not _behind(connection), within_s=600, poll_s=0.1)
        reported_s = time.perf_counter() - began
        answering.cancel()
    return command_s, reported_s, [at_s - began for at_s in told]


async def _answer(client: MqttConnection, told: list[float]) -> None:
    """Every gateway takes what it is told and reports it."""
    async for message in client.messages():
        topic, twin = topics.parse(message.topic), DesiredTwin.decode(message.payload)
        assert isinstance(topic, topics.LinkTopic)  # the filter admits no other
        told.append(time.perf_counter())
        report = reported_twin(twin.version, confirmed={"fridge-1": twin.version})
        await client.publish(topics.link(topic.gateway, Channel.REPORTED_TWIN), report.encode())


def _change(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (patch := Path(folder) / "patch.json").write_text(json.dumps(PATCH))
        subprocess.run(
            [
                sys.executable,
                "-m",
                "stocktide",
                "cloud",
                "twin",
                "set",
                "--tenant",
                TENANT,
                "--patch",
                f"@{patch}",
                "--database-url",
                url,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def _behind(connection: Connection) -> bool:
    row = connection.execute(
        "SELECT count(*) = %s AND bool_and(reported_version = version) FROM twin", (GATEWAYS,)
    ).fetchone()
    return row is None or not row[0]

"""Events per second through one agent: a device's publish to the SQLite commit, real Mosquitto in between.

Beside it, in the same run, the floor that the disk sets: how many commits a second the same file system does, so that
a slow disk is not mistaken for a slow agent.
"""

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from testbed.agent_process import AgentProcess
from testbed.eventually import eventually
from testbed.services import PrivateBroker
from wire_protocol import topics
from wire_protocol.messages import DeviceEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENTS = 30_000
DEVICES = 20
SKUS = 500


@contextmanager
def running_agent(
    folder: Path, broker_url: str, devices: list[str], *run_options: str
) -> "Iterator[tuple[AgentProcess, Path]]":
    """An agent on a new ledger, without a cloud unless an option gives it one."""
    ledger = folder / "ledger.db"
    command = [sys.executable, "-m", "stocktide", "edge"]
    options = [f"--device={name}" for name in devices]
    init = [*command, "init", "--ledger", str(ledger), "--gateway", "gw-bench", "--local", broker_url, *options]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    agent = AgentProcess(ledger, list(run_options), fresh=True).start()
    try:
        yield agent, ledger
    finally:
        agent.stop()


def _publisher(broker: PrivateBroker, name: str) -> Client:
    client = Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(1_000)
    client.max_queued_messages_set(0)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    return client


def _committed(ledger: Path) -> int:
    with closing(sqlite3.connect(ledger)) as connection:
        return int(connection.execute("SELECT coalesce(max(seq), 0) FROM entry").fetchone()[0])


def _wait_for(ledger: Path, entries: int) -> None:
    eventually(lambda: _committed(ledger) >= entries, explain=lambda: f"{_committed(ledger)} of {entries} events")


def _commit_floor(folder: Path) -> float:
    """Single-row durable commits per second on this file system."""
    with closing(sqlite3.connect(folder / "floor.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE entry (body TEXT)")
        began = time.perf_counter()
        for _ in range(1_000):
            connection.execute("INSERT INTO entry VALUES (?)", ("x" * 250,))
        return 1_000 / (time.perf_counter() - began)


def _event(device: str, number: int) -> tuple[str, bytes]:
    sold = number % 3 > 0
    event = DeviceEvent(
        id=f"bench-{number:06d}",
        kind="pick" if sold else "receive",
        sku=f"SKU-{number * 7919 % SKUS:04d}",
        quantity=1 + number % 9,
        source="A-01" if sold else None,
        destination=None if sold else "A-01",
    )
    return topics.device(device, topics.Channel.DEVICE_EVENT), event.encode()


def run() -> dict[str, Any]:
    """Measure; returns rates per second and the agent's idle memory in bytes."""
    names = [f"scanner-{number:02d}" for number in range(DEVICES)]
    payloads = [_event(names[number % DEVICES], number) for number in range(EVENTS)]
    with tempfile.TemporaryDirectory() as name, PrivateBroker() as broker:
        folder = Path(name)
        floor = _commit_floor(folder)
        with running_agent(folder, broker.url, names) as (agent, ledger):
            client = _publisher(broker, "bench")
            client.publish(topics.device(names[0], topics.Channel.DEVICE_EVENT), payloads[0][1], qos=1)
            _wait_for(ledger, 1)
            time.sleep(2)  # until it is at rest: nothing says when that is
            process = psutil.Process(agent.child.pid)
            idle, worked = process.memory_info().rss, process.cpu_times()
            began = time.perf_counter()
            for topic, payload in payloads[1:]:
                client.publish(topic, payload, qos=1)
            _wait_for(ledger, EVENTS)
            seconds = time.perf_counter() - began
            cpu_s = sum(process.cpu_times()[:2]) - sum(worked[:2])
            client.disconnect()
    return {
        "events": EVENTS,
        "events_per_s": (EVENTS - 1) / seconds,
        "agent_cpu_us_per_event": cpu_s / (EVENTS - 1) * 1e6,
        "single_commits_per_s": floor,
        "ratio_to_single_commits": (EVENTS - 1) / seconds / floor,
        "agent_idle_rss_bytes": idle,
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    print(run())

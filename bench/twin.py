"""A twin's way: from the operator's commit to the gateway's report in the database, one change after the other.

Beside it, in the same run, the floor: a round trip through the same broker of two messages of the same size.
"""

import socket
import statistics
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final, cast

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from bench.agent import running_agent
from bench.cloud_worker import running_worker
from cloud_store.base import migrations
from cloud_store.base.connection import Connection, connect
from cloud_store.provisioning import twins
from cloud_store.tenancy import registry
from testbed import services
from testbed.eventually import eventually
from testbed.services import PrivateBroker, databases

CHANGES: Final = 100
DEADLINE_S: Final = 30.0


def run() -> dict[str, Any]:
    """Measure; milliseconds."""
    with (
        databases.database(services.database_url(), f"bench_{time.time_ns()}") as url,
        tempfile.TemporaryDirectory() as name,
        PrivateBroker() as cloud,
        PrivateBroker() as local,
    ):
        migrations.apply(url)
        with closing(connect(url, application="bench")) as connection:
            registry.add_tenant(connection, "bench")
            registry.add_site(connection, "bench", "site")
            registry.add_gateway(connection, "bench", "site", "gw-bench")
            with (
                running_worker(url, cloud.url),
                running_agent(Path(name), local.url, ["probe-1"], "--cloud", cloud.url),
            ):
                _change(connection, 1)  # until it is in force, everything is connected
                measured = sorted(_change(connection, number) for number in range(2, CHANGES + 2))
        floor = _round_trips(cloud)
    return {
        "changes": CHANGES,
        "in_force_and_reported_ms_median": statistics.median(measured),
        "in_force_and_reported_ms_p95": measured[int(CHANGES * 0.95)],
        "broker_round_trip_ms_median": statistics.median(floor),
    }


def _change(connection: Connection, number: int) -> float:
    """Change a device's sampling; milliseconds until the database knows that the gateway has it."""
    patch = {"devices": {"probe-1": {"kind": "probe", "sampling_s": number}}}
    began = time.perf_counter()
    list(twins.change(connection, twins.Selection(("gw-bench",)), patch, who="bench"))
    eventually(
        lambda: (twins.show(connection, "gw-bench")["reported_version"] or 0) >= number,
        f"version {number} is reported",
        poll_s=0.001,
    )
    return (time.perf_counter() - began) * 1_000


def _round_trips(broker: PrivateBroker) -> list[float]:
    """Milliseconds from a publish to the answer to it, both with QoS 1."""
    answered = threading.Event()
    client = Client(CallbackAPIVersion.VERSION2, client_id="floor", protocol=MQTTProtocolVersion.MQTTv5)

    def answer(client: Client, _userdata: object, message: MQTTMessage) -> None:
        if message.topic == "floor/there":
            client.publish("floor/back", message.payload, qos=1)
        else:
            answered.set()

    client.on_message = answer
    client.on_socket_open = lambda _client, _userdata, opened: cast("socket.socket", opened).setsockopt(
        socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
    )
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.subscribe([("floor/there", 1), ("floor/back", 1)])
    times = []
    for _ in range(CHANGES):
        answered.clear()
        began = time.perf_counter()
        client.publish("floor/there", b"x" * 200, qos=1)
        answered.wait(DEADLINE_S)
        times.append((time.perf_counter() - began) * 1_000)
    client.disconnect()
    client.loop_stop()
    return times

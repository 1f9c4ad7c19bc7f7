"""A dead gateway with a long past is restored on default settings, through the smallest packets we ever rendered."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cloud_store.base.connection import connect
from cloud_store.merge.arrivals import ArrivedFrame
from cloud_store.tenancy import registry
from edge_agent.ledger import audit, database, queries
from testbed.services import PrivateBroker
from testbed.services.broker import anonymous_config
from testbed.store import MergeSession
from tests.cloud_store.histories import NOW_MS, Chain, movement
from wire_protocol import clock
from wire_protocol.frames import FRAME_ENTRIES_MAX

# `make long` does it with a million: nothing in it is otherwise, and it takes minutes.
ENTRIES = int(os.environ.get("STOCKTIDE_TEST_ENTRIES", "60000"))
FRAMES_IN_A_BATCH = 40
PACKET_BYTES_MAX = 266_240  # of the brokers that were rendered first; those of today take more


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_gateway_with_a_long_past_is_restored_on_default_settings(
    tmp_path: Path, private_broker: Callable[..., PrivateBroker], database_url: str, unique_name: Callable[..., str]
) -> None:
    """F1: what was packed was larger than the broker's packets: the worker was disconnected, and nothing ever came."""
    gateway = unique_name()
    with closing(connect(database_url, application="tests")) as connection:
        registry.add_tenant(connection, "acme")
        registry.add_site(connection, "acme", "oslo")
        registry.add_gateway(connection, "acme", "oslo", gateway)
    frames = past(gateway)
    with MergeSession(database_url) as merger:
        while batch := [frame for _, frame in zip(range(FRAMES_IN_A_BATCH), frames, strict=False)]:
            merger.merge(batch)
    cloud = private_broker(lambda port, data: f"{anonymous_config(port, data)}max_packet_size {PACKET_BYTES_MAX}\n")
    path = tmp_path / "ledger.db"
    program = [sys.executable, "-m", "stocktide"]
    settings = os.environ | {"STOCKTIDE_DATABASE_URL": database_url, "STOCKTIDE_MQTT_URL": cloud.url}
    with subprocess.Popen([*program, "cloud", "ingest"], stderr=subprocess.DEVNULL, env=settings) as worker:
        try:
            asked = ["edge", "restore", "--gateway", gateway, "--cloud", cloud.url, "--ledger", str(path), "--json"]
            done = subprocess.run([*program, *asked], capture_output=True, text=True, check=False)
        finally:
            worker.kill()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["entries"], told["logs"], told["devices"]) == (ENTRIES, 1, ["till-1"])
    with closing(database.open_reader(path)) as reader:
        held = queries.balances(reader)
        assert sum(pieces for cell, pieces in held.items() if cell.location == "A-01") == ENTRIES
        assert audit.verify(reader).findings == []


def past(gateway: str) -> Iterator[ArrivedFrame]:
    """Receipts of one piece each, sealed into full frames."""
    chain = Chain(gateway)
    for start in range(0, ENTRIES, FRAME_ENTRIES_MAX):
        yield chain.seal(
            [
                movement(
                    clock.pack(NOW_MS + number),
                    "receive",
                    "@supplier",
                    "A-01",
                    sku=f"SKU-{number % 500}",
                    device="till-1",
                    event=f"{number * 2_654_435_761 % 2**32:08x}-{number}",
                    reference=f"PO {number * 48_271 % 2**31}",
                )
                for number in range(start, start + FRAME_ENTRIES_MAX)
            ]
        )

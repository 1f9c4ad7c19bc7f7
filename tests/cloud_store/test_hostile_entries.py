"""Entries that no honest gateway writes, through the whole merge on real TimescaleDB.

Broken when one of them stops a worker, or is stored.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cloud_store.base.connection import Connection
from cloud_store.merge.arrivals import LogKey
from cloud_store.reports import snapshots
from cloud_store.tenancy import registry
from testbed.store import MergeSession
from tests.cloud_store.histories import BOOT, EPOCH, NOW_MS, Chain, arrived, columns, movement
from wire_protocol import clock, frames
from wire_protocol.messages import EPOCH_MS_MAX
from wire_protocol.stock import Cell

GOOD: dict[str, Any] = {
    "hlc": clock.pack(NOW_MS),
    "boot": BOOT,
    "mono_ms": 0,
    "kind": "receive",
    "sku": "screw",
    "quantity": 1,
    "source": "@supplier",
    "destination": "A-1",
}
READING: dict[str, Any] = {"hlc": clock.pack(NOW_MS), "boot": BOOT, "mono_ms": 0, "kind": "reading"}
HOSTILE: list[dict[str, Any]] = [
    {**GOOD, "kind": "\ud800"},
    {**GOOD, "kind": ["receive"]},
    {**GOOD, "sku": "\ud800"},
    {**GOOD, "sku": "a\0b"},
    {**GOOD, "sku": "x" * 100_000},
    {**GOOD, "event": "\udfff"},
    {**GOOD, "quantity": 10**400},
    {**GOOD, "quantity": True},
    {**GOOD, "quantity": 1.0},
    {**GOOD, "hlc": 1 << 63},
    {**GOOD, "hlc": -1},
    {**GOOD, "device_at_ms": 1 << 62},
    {**GOOD, "destination": "@nowhere"},
    {},
    {**READING, "values": {"t": 1}},
    {**READING, "values": {"t": 10**400}},
    {**READING, "values": {"t": float("nan")}},
]


@pytest.fixture
def merger(connection: Connection, database_url: str) -> Iterator[MergeSession]:
    """A merger, and one gateway in the registry."""
    registry.add_site(connection, "acme", "berlin")
    registry.add_gateway(connection, "acme", "berlin", "gw-a")
    made = MergeSession(database_url)
    yield made
    made.close()


@pytest.mark.parametrize("row", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_entry_is_rejected_and_the_rest_is_stored(
    merger: MergeSession, connection: Connection, row: dict[str, Any]
) -> None:
    """Its neighbours in the frame merge; the acknowledgement can be sent; the dead letter can be read."""
    report = merger.merge([Chain("gw-a").seal_columns(columns([GOOD, row]), 2)])
    outcome = report.streams[LogKey("gw-a", "ledger", EPOCH)]
    ack = outcome.receiver.ack(NOW_MS, 16, rejected=outcome.rejected)
    assert json.loads(ack.encode())["rejected"][0]["seq"] == 2
    assert snapshots.balances(connection, "acme", "berlin")[Cell("A-1", "screw", "")] == 1
    letters = connection.execute("SELECT kind, payload FROM dead_letter").fetchall()
    assert [(kind, isinstance(json.loads(payload), dict)) for kind, payload in letters] == [("entry", True)]


def test_absurd_clock_offsets_do_no_harm(merger: MergeSession, connection: Connection) -> None:
    """The largest offset that a frame may carry is bounded with the time it gives, which is kept beside it."""
    honest = Chain("gw-a").seal(
        [movement(clock.pack(NOW_MS), "receive", "@supplier", "A-1")], boots={BOOT: -EPOCH_MS_MAX}
    )
    assert merger.merge([honest]).movements == 1
    assert connection.execute("SELECT claimed_ms FROM movement").fetchone() == (-EPOCH_MS_MAX,)


@pytest.mark.parametrize("column", ["ms", "drift_ms"])
def test_a_number_too_long_to_write_down_stops_no_worker(
    merger: MergeSession, connection: Connection, column: str
) -> None:
    """Python reads integers of 4,300 digits and writes none that is longer: the dead letter has the frame instead."""
    entries = {**GOOD, "ms": NOW_MS, "tick": 0, "drift_ms": 0, column: "LONG"}
    del entries["hlc"], entries["mono_ms"]
    header = {"stream": "ledger", "epoch": EPOCH, "frame": 1, "first_seq": 1, "count": 1}
    envelope = header | {"prev": frames.genesis("gw-a", EPOCH, "ledger"), "entries": entries}
    payload = json.dumps(envelope).replace('"LONG"', "-" + "9" * 4300).encode()
    report = merger.merge([arrived("gw-a", payload)])
    assert (report.frames, report.rejected) == (1, 1)
    assert connection.execute("SELECT kind, payload FROM dead_letter").fetchone() == ("entry", payload)

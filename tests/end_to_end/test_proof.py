"""The proof itself: it must hold for real sales under real faults, and it must not hold when anything differs."""

import re
import subprocess
import sys
from contextlib import closing

import pytest

from cloud_store.base.connection import connect
from firmware_sim.recordings import replay
from firmware_sim.scenarios import builtin
from tests.end_to_end.stack import Build
from wire_protocol.address import BrokerAddress

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


async def test_recorded_sales_arrive_once(build: Build) -> None:
    """Real input, oddities included: returns, cancellations, repeated lines, codes that are no goods."""
    stack = build()
    gateway = stack.gateways[0]
    plan = replay.plan(builtin.ONLINE_RETAIL, sites={"united-kingdom"}, limit=1_500, opening_stock=True)
    gateway.register(plan.device_names["united-kingdom"])
    fleet = plan.fleet({"united-kingdom": BrokerAddress.parse(gateway.broker.url)}, speed=None)
    report = await fleet.run()
    assert report.is_complete
    assert report.snapshot.refused == 0
    gateway.events = report.snapshot.events
    gateway.scanners.clear()
    proof = stack.prove()
    assert (proof.problems, [row.problems for row in proof.sites]) == ([], [[], []])
    assert proof.sites[0].cloud_distinct == plan.events


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        ("UPDATE balance SET on_hand = on_hand + 1 WHERE on_hand > 0", r"SKU-\d+ at \S+: -?\d+ at the edge, -?\d+ in"),
        ("DELETE FROM movement WHERE seq = 1", r"20 entries in the ledger, 19 in the cloud"),
        ("INSERT INTO movement SELECT * FROM movement WHERE seq = 1", r"20 entries in the ledger, 21 in the cloud"),
    ],
)
def test_the_proof_fails_when_something_differs(build: Build, tamper: str, expected: str) -> None:
    """A proof that cannot fail proves nothing."""
    stack = build()
    for gateway in stack.gateways:
        gateway.scan(10)
    assert stack.prove().holds
    with closing(connect(stack.database_url, application="tests")) as connection:
        connection.execute(tamper.encode())
    proof = stack.prove()
    assert not proof.holds
    assert any(re.search(expected, problem) for row in proof.sites for problem in row.problems)


def test_an_event_that_never_reached_the_ledger_is_missed(build: Build) -> None:
    """What the devices sent is part of the proof."""
    stack = build()
    stack.gateways[0].scan(5)
    assert stack.prove().holds
    stack.gateways[0].events += 1
    stack.gateways[0].scanners[0].committed.add("ghost")
    assert "devices sent 11 events, the ledger has 10" in stack.prove().sites[0].problems


def test_the_demo_ends_by_itself_with_a_proof() -> None:
    """What a newcomer runs first. Embedded PostgreSQL and broker, no services needed, exit code 0."""
    shown = subprocess.run(
        [sys.executable, "-m", "stocktide", "demo", "--seconds", "10", "--events", "150"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "The uplink of london is cut" in shown.stdout
    assert "Proved: every event counted once" in shown.stdout
    assert shown.stderr == ""

"""From the scan to the cloud under fault: afterwards devices, ledgers and cloud agree, each event counted once.

The rows of the failure table that need the whole path. Each test breaks one thing for real, in the middle of the load.
"""

from contextlib import closing

import pytest

from cloud_store import registry
from cloud_store.connection import connect
from tests.agent_process import wait_for
from tests.end_to_end.conftest import Build, Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SCANS = 1_000


def assert_proved(stack: Stack) -> None:
    """Nothing differs anywhere."""
    proof = stack.prove()
    assert (proof.problems, [row.problems for row in proof.sites]) == ([], [[], []])
    assert [row.cloud_distinct for row in proof.sites] == [gateway.events for gateway in stack.gateways]


def load(stack: Stack) -> None:
    """Half of a test's load."""
    for gateway in stack.gateways:
        gateway.scan(SCANS)


def test_without_fault_everything_arrives_once(build: Build) -> None:
    """The main job: from a scan on a shelf to a number in the cloud."""
    stack = build()
    load(stack)
    assert_proved(stack)
    assert [worker.stop() for worker in stack.workers] == [0]
    assert [gateway.agent.stop() for gateway in stack.gateways] == [0, 0]


def test_two_workers_side_by_side_and_one_is_killed(build: Build) -> None:
    """Leases vanish with the dead worker's session; the other takes its shards over, and nothing is merged twice."""
    stack = build(workers=2)
    load(stack)
    stack.workers[0].kill()
    load(stack)
    assert_proved(stack)


def test_the_only_worker_is_killed_under_load_and_comes_back(build: Build) -> None:
    """Killed mid-transaction: rolled back, not acknowledged, sent again."""
    stack = build()
    for _ in range(2):
        load(stack)
        stack.workers[0].kill()
        stack.workers[0].start()
    assert_proved(stack)


def test_the_clouds_broker_is_killed_and_comes_back_empty(build: Build) -> None:
    """Nothing depends on a broker's memory."""
    stack = build()
    load(stack)
    stack.cloud_broker.kill()
    load(stack)
    stack.cloud_broker.start()
    assert_proved(stack)


def test_the_database_is_killed_and_recovers(build: Build) -> None:
    """Nothing is acknowledged while it is down; what was acknowledged is there after recovery."""
    stack = build(own_database=True)
    load(stack)
    assert stack.database is not None
    stack.database.kill()
    load(stack)
    stack.database.start()
    assert_proved(stack)


def test_agents_are_killed_under_load(build: Build) -> None:
    """The ledger is whole at any instruction, and the cloud's cursor fits it."""
    stack = build()
    for _ in range(2):
        load(stack)
        for gateway in stack.gateways:
            gateway.agent.kill()
            gateway.agent.start()
    assert_proved(stack)


def test_a_disabled_gateway_is_refused_and_an_enabled_one_loses_nothing(build: Build) -> None:
    """The registry decides; refusal must not cost the gateway its frames."""
    stack = build()
    load(stack)
    for gateway in stack.gateways:
        gateway.settle()
    with closing(connect(stack.database_url, application="tests")) as connection:
        registry.set_gateway_state(connection, stack.gateways[0].site.gateway, "disabled")
        load(stack)
        stack.gateways[1].settle()
        assert stack.gateways[0].waiting() > 0
        registry.set_gateway_state(connection, stack.gateways[0].site.gateway, "active")
    wait_for(lambda: stack.gateways[0].waiting() == 0, timeout_s=60)
    assert_proved(stack)

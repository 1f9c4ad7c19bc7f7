"""From the scan to the cloud: afterwards devices, ledgers and cloud agree, each event counted once.

What is broken at random moments under load is in `test_fault_matrix.py`.
"""

from contextlib import closing

import pytest

from cloud_store.base.connection import connect
from cloud_store.tenancy import registry
from tests.end_to_end.stack import Build, Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SCANS = 1_000


def load(stack: Stack) -> None:
    """A test's load, all at once."""
    for gateway in stack.gateways:
        gateway.scan(SCANS)


def test_without_fault_everything_arrives_once(build: Build) -> None:
    """The main job: from a scan on a shelf to a number in the cloud."""
    stack = build()
    load(stack)
    stack.require_agreement()
    assert [worker.stop() for worker in stack.workers] == [0]
    assert [gateway.agent.stop() for gateway in stack.gateways] == [0, 0]


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
    stack.require_agreement()

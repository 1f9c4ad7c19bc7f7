"""Twins in a real database: changes, pushes that are due, reports."""

from collections.abc import Iterator
from contextlib import closing
from threading import Thread
from typing import Any

import pytest

from cloud_store.base.connection import Connection
from cloud_store.base.errors import UnknownName
from cloud_store.base.leases import LeaseSession
from cloud_store.provisioning import twins
from cloud_store.provisioning.twins import Changed, Selection
from cloud_store.tenancy import registry
from testbed.reported_twins import reported_twin
from testbed.store import StoreModule
from wire_protocol import topics
from wire_protocol.twin import InvalidTwin

pytestmark = pytest.mark.services
ALL_SHARDS = range(topics.SHARDS)
PROBE = {"devices": {"fridge-1": {"kind": "probe", "sampling_s": 60}}}


@pytest.fixture
def store(connection: Connection, database_url: str) -> Iterator[StoreModule]:
    """A store, and three gateways at two sites."""
    for site, gateways in (("berlin", ("gw-a", "gw-b")), ("oslo", ("gw-c",))):
        registry.add_site(connection, "acme", site)
        for gateway in gateways:
            registry.add_gateway(connection, "acme", site, gateway)
    with closing(StoreModule(twins, database_url)) as made:
        yield made


def change(connection: Connection, patch: dict[str, Any], **wanted: object) -> Changed:
    """Change, to the end."""
    return list(twins.change(connection, Selection(**wanted), patch, who="kim"))[-1]  # type: ignore[arg-type]


def due(store: StoreModule) -> list[tuple[str, int]]:
    """What is to be pushed now."""
    return [(push.gateway, push.twin.version) for push in store.due(ALL_SHARDS, limit=100, again_s=3600).made]


def test_a_change_is_pushed_once_and_again_only_to_who_has_not_got_it(
    store: StoreModule, connection: Connection
) -> None:
    """Until the gateway reports the version, whoever reports an older one is answered with it."""
    assert change(connection, PROBE, names=("gw-a",)) == Changed(1, 1, 1)
    [push] = store.due(ALL_SHARDS, limit=100, again_s=3600).made
    assert (push.gateway, push.twin.version, push.twin.state.devices["fridge-1"].sampling_s) == ("gw-a", 1, 60)
    assert store.due([topics.shard("gw-a") ^ 1], limit=100, again_s=3600).made == []
    store.pushed([push])
    assert due(store) == []
    assert store.report("gw-a", reported_twin(0)) == push.twin
    assert store.report("gw-a", reported_twin(1)) is None
    assert twins.show(connection, "gw-a")["reported_version"] == 1


def test_a_change_that_changes_nothing_keeps_the_version(store: StoreModule, connection: Connection) -> None:
    """Otherwise a command that is repeated would wake ten thousand gateways for nothing."""
    del store
    change(connection, PROBE, tenant="acme")
    assert change(connection, PROBE, tenant="acme") == Changed(3, 0, 3)
    assert change(connection, {"devices": {"fridge-1": {"sampling_s": 30}}}, tenant="acme", site="berlin").changed == 2
    assert twins.show(connection, "gw-c")["version"] == 1
    assert [row["changed_by"] for row in twins.history(connection, "gw-a", limit=9)] == ["kim", "kim"]


@pytest.mark.parametrize(
    "patch",
    [
        {"devices": {"fridge-1": {"kind": "probe", "sampling": 60}}},
        {"devices": {"fridge-1": {"kind": "probe", "sampling_s": 0}}},
        {"devices": {"fridge/1": {"kind": "probe"}}},
        {"devices": {"#": {"kind": "probe"}}},
        {"devices": {"fridge-1": {"sampling_s": 1}}},
        {"devices": {"p": {"kind": "probe", "thresholds": {"t": {"low": 3, "high": 2}}}}},
        {"devices": {"p": {"kind": "probe", "calibration": {"t": {"factor": float("nan")}}}}},
        {"devices": {f"p-{n}": {"kind": "probe"} for n in range(1001)}},
        {
            "devices": {
                f"p-{n}": {"kind": "probe", "settings": {f"s{m}": "x" * 250 for m in range(60)}} for n in range(20)
            }
        },
        {"limits": {"readings": 1}},
        {"surprise": 1},
    ],
)
def test_what_no_gateway_could_take_is_refused(
    store: StoreModule, connection: Connection, patch: dict[str, object]
) -> None:
    """In the cloud, where the operator is, and not at the gateway."""
    with pytest.raises(InvalidTwin):
        change(connection, patch, names=("gw-a",))
    assert due(store) == []


def test_unknown_gateways_are_told(store: StoreModule, connection: Connection) -> None:
    """All or none: a misspelt name must not change only the others."""
    with pytest.raises(UnknownName):
        change(connection, PROBE, names=("gw-a", "gw-x"))
    assert due(store) == []
    assert store.report("gw-x", reported_twin(0)) is None


def test_a_gateway_ahead_of_the_cloud_is_caught_up_with(store: StoreModule, connection: Connection) -> None:
    """After a failover the cloud's version is older than the gateway's: what operators see must get in force again."""
    change(connection, PROBE, names=("gw-a",))
    desired = store.report("gw-a", reported_twin(7))
    assert desired is not None
    assert desired.version == 8
    assert store.report("gw-a", reported_twin(8)) is None


def test_a_refused_document_is_not_pushed_for_ever(store: StoreModule, connection: Connection) -> None:
    """The gateway said why; the operator sees it and changes the document."""
    change(connection, PROBE, names=("gw-a",))
    [push] = store.due(ALL_SHARDS, limit=100, again_s=3600).made
    store.pushed([push])
    assert store.report("gw-a", reported_twin(0, refused=1, reason="why not")) is None
    assert store.due(ALL_SHARDS, limit=100, again_s=0).made == []
    [row] = twins.overview(connection, tenant="acme")
    assert row["state"] == "refused"


def test_a_change_wakes_the_worker(store: StoreModule, connection: Connection, database_url: str) -> None:
    """At once, not at the next look."""
    del store
    with LeaseSession(database_url, "test") as session:
        assert not session.notified(0.05)
        changing = Thread(target=change, args=(connection, PROBE), kwargs={"tenant": "acme"})
        changing.start()
        assert session.notified(10)
        changing.join()

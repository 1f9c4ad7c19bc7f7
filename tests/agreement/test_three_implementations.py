"""One definition, three implementations: the oracle, SQLite at every gateway, SQL in TimescaleDB.

Broken when any order, duplication, lateness or batching, on its way up over several workers or down to the site's other
gateways, makes one of them show another stock, another variance or another `@adjust` than the definition gives.
"""

from collections.abc import Iterator
from itertools import count as numbers
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_store.base.connection import Connection, connect
from cloud_store.merge.arrivals import ArrivedFrame
from cloud_store.reports import snapshots
from cloud_store.tenancy import registry
from edge_agent.ledger import audit
from testbed import sites
from testbed.sites import SiteGateway, Step
from testbed.store import MergeSession
from wire_protocol.site_messages import SiteFrame
from wire_protocol.stock import imbalance

_SITES = numbers(1)


@pytest.fixture
def cloud(database_url: str) -> Iterator[Connection]:
    """A connection to the test's database."""
    with connect(database_url, application="test") as opened:
        registry.add_tenant(opened, "acme")
        yield opened


def arrived(message: SiteFrame) -> ArrivedFrame:
    """A frame as a worker gets it."""
    return ArrivedFrame.read(message.gateway, "ledger", message.frame, message.received_ms)


@pytest.mark.timeout(400)
def test_edge_cloud_and_oracle_agree_on_everything(
    cloud: Connection, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Up over two workers in any batches, down to the others, doubled and too early on both ways."""
    mergers = [MergeSession(database_url), MergeSession(database_url)]

    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(history=sites.steps, seed=st.integers(0, 2**16))
    def check(history: list[Step], seed: int) -> None:
        site, chance = f"site-{next(_SITES)}", Random(seed)
        registry.add_site(cloud, "acme", site)
        names = [f"{site}-{letter}" for letter in "abc"]
        for name in names:
            registry.add_gateway(cloud, "acme", site, name)
        shipped: list[SiteFrame] = []

        def ship(messages: list[SiteFrame]) -> None:
            shipped.extend(messages)
            again = chance.choices(shipped, k=chance.randrange(3)) if shipped else []
            batch = [arrived(message) for message in (*again, *messages)]
            if batch:
                chance.choice(mergers).merge(batch)

        with sites.gateways(tmp_path_factory.mktemp("site"), names) as made:
            for step in history:
                gateway = made[step.gateway]
                gateway.append(*step.booked, late_ms=step.late_ms)
                gateway.clock.turn(step.turn_ms)
                if step.seal:
                    ship(gateway.seal(chance.choice([1, 2, 500])))
                gateway.receive(*chance.choices(shipped, k=step.hear) if shipped else [])
            for gateway in made:
                ship(gateway.seal())
            for gateway in made:
                gateway.fetch(shipped)
            _require_agreement(cloud, site, made)

    try:
        check()
    finally:
        for merger in mergers:
            merger.close()


def _require_agreement(cloud: Connection, site: str, made: list[SiteGateway]) -> None:
    expected = sites.defined(made)
    assert imbalance(expected.on_hand.items()) == {}
    assert snapshots.balances(cloud, "acme", site) == expected.on_hand
    assert snapshots.variances(cloud, "acme", site) == expected.variance
    for gateway in made:
        stock = gateway.stock()
        assert (stock.on_hand, stock.variance) == (expected.on_hand, expected.variance)
        assert audit.verify(gateway.ledger.connection).findings == []

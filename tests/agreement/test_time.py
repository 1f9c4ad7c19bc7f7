"""A gateway whose clock is wrong: its entries get their true time in the cloud and at the site's other gateways."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloud_store.base.connection import Connection, connect
from cloud_store.merge.arrivals import ArrivedFrame
from cloud_store.reports import history
from cloud_store.reports.history import AsOf
from cloud_store.reports.stock_levels import StockFilter
from cloud_store.tenancy import registry
from edge_agent.ledger import database, queries
from edge_agent.ledger.drafts import draft
from edge_agent.ledger.outbox import Outbox
from testbed import sites
from testbed.sites import START_MS, SiteGateway
from testbed.store import MergeSession
from wire_protocol.site_messages import SiteFrame

HOUR_MS = 3_600_000
NIGHT_MS = START_MS + 12 * HOUR_MS


@pytest.fixture
def cloud(database_url: str) -> Iterator[Connection]:
    """A connection to the test's database, with a site of two gateways."""
    with connect(database_url, application="test") as opened:
        registry.add_tenant(opened, "acme")
        registry.add_site(opened, "acme", "oslo")
        for name in ("gw-a", "gw-b"):
            registry.add_gateway(opened, "acme", "oslo", name)
        yield opened


def ship(database_url: str, gateway: SiteGateway) -> list[SiteFrame]:
    """Merge what waits, as received in the night; as the cloud would pass it down."""
    sent = [replace(message, received_ms=NIGHT_MS) for message in gateway.seal()]
    with closing(MergeSession(database_url)) as merger:
        merger.merge([ArrivedFrame.read(gateway.name, "ledger", message.frame, NIGHT_MS) for message in sent])
    return sent


def hears_the_cloud(gateway: SiteGateway, now_ms: int) -> None:
    """An acknowledgement tells the cloud's time."""
    with database.transaction(gateway.ledger.connection):
        Outbox(gateway.ledger).learn_time(now_ms - gateway.clock.mono_ms())


def test_a_day_recorded_in_1970_is_put_where_it_belongs(cloud: Connection, database_url: str, tmp_path: Path) -> None:
    """No battery, no network until the night: the day's goods are at their hours, in the cloud and at the others."""
    with sites.gateways(tmp_path, ["gw-a", "gw-b"]) as (lost, other):
        lost.clock.at_ms = 0
        for hour in range(12):
            lost.append(draft("receive", "screw", 1, destination="A-1"))
            if hour == 6:
                lost.clock.at_ms = 946_684_800_000  # somebody types a date, and a wrong one
            lost.clock.turn(HOUR_MS)
        hears_the_cloud(lost, NIGHT_MS)
        sent = ship(database_url, lost)
        expected = [START_MS + hour * HOUR_MS for hour in range(12)]
        rows = cloud.execute("SELECT (extract(epoch FROM at) * 1000)::bigint, claimed_ms FROM movement ORDER BY seq")
        assert rows.fetchall() == [(at_ms, None) for at_ms in expected]
        other.fetch(sent)
        for gateway in (lost, other):
            assert [row.at_ms for row in reversed(queries.history(gateway.ledger.connection))] == expected
        noon = datetime.fromtimestamp((START_MS + 5.5 * HOUR_MS) / 1000, UTC)
        page = history.stock(cloud, StockFilter(tenant="acme"), AsOf(at=noon), limit=10)
        assert [row["on_hand"] for row in page.rows] == [6]


def test_after_contact_the_order_is_by_true_time(tmp_path: Path) -> None:
    """A count in the evening must cover what the other gateway picked at noon, whatever the clock of the first says."""
    with sites.gateways(tmp_path, ["gw-a", "gw-b"]) as (lost, other):
        other.append(draft("receive", "screw", 10, destination="A-1"), draft("pick", "screw", 3, source="A-1"))
        lost.clock.at_ms = 0
        lost.clock.turn(6 * HOUR_MS)
        hears_the_cloud(lost, START_MS + 6 * HOUR_MS)
        lost.append(draft("count", "screw", 6, location="A-1"))
        lost.fetch(other.seal())
        other.fetch(lost.seal())
        for gateway in (lost, other):
            assert [row.on_hand for row in queries.stock(gateway.ledger.connection)] == [6]
            assert set(gateway.stock().variance.values()) == {-1}


def test_a_clock_years_ahead_is_bounded_flagged_and_kept(cloud: Connection, database_url: str, tmp_path: Path) -> None:
    """In a boot that never heard the cloud there is nothing better than the clock; it is not believed beyond bounds."""
    with sites.gateways(tmp_path, ["gw-a"]) as (lost,):
        lost.clock.at_ms = ahead_ms = START_MS + 20 * 365 * 24 * HOUR_MS
        lost.append(draft("receive", "screw", 1, destination="A-1"))
        ship(database_url, lost)
        row = cloud.execute("SELECT (extract(epoch FROM at) * 1000)::bigint, claimed_ms FROM movement").fetchone()
        assert row == (NIGHT_MS + 5 * 60_000, ahead_ms)

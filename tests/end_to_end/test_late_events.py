"""Scanners that were out of range, on real brokers: what was counted meanwhile stays, at gateways and in the cloud."""

from contextlib import closing

import pytest

from cloud_store.reports import snapshots
from edge_agent.desk.booking import book
from edge_agent.devices.dead_letters import retry_dead_letters
from edge_agent.ledger import database, queries
from edge_agent.ledger.sql import statement
from testbed.eventually import eventually
from testbed.scanner import Scanner
from tests.end_to_end.sites import SETTLE_S, Post, SiteStack
from wire_protocol.messages import DeviceEvent, DeviceReading
from wire_protocol.stock import Cell
from wire_protocol.topics import Channel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
SHELF = Cell("A-01", "tea", "")


def pick(event: str, quantity: int, **fields: int) -> DeviceEvent:
    """Goods are taken from the shelf."""
    return DeviceEvent.model_validate(
        {"id": event, "kind": "pick", "sku": "tea", "quantity": quantity, "source": "A-01", **fields}
    )


def require(site: SiteStack, on_hand: int) -> None:
    """Every gateway and the cloud show so much on the shelf."""

    def shown() -> list[int | None]:
        cloud = snapshots.balances(site.cloud, site.tenant, site.site)
        return [balances.get(SHELF) for balances in (cloud, *(post.balances() for post in site.posts))]

    eventually(lambda: set(shown()) == {on_hand}, within_s=SETTLE_S, explain=lambda: str(shown()))


def report(post: Post, *events: DeviceEvent) -> None:
    """The scanner reports, and gets its receipts."""
    post.sent += len({event.id for event in events})
    for event in events:
        post.scanner.report(event)
    eventually(lambda: post.scanner.has_receipts(post.sent), within_s=SETTLE_S)


def counted(post: Post, quantity: int) -> None:
    """A technician counts the shelf."""
    book(post.agent.ledger, "count", "tea", quantity, location="A-01")


def test_a_count_stays_whatever_scanners_deliver_late(site: SiteStack) -> None:
    """Broken when a scanner that comes back into range takes goods off a shelf that was counted without them."""
    first, second = site.make(), site.make()
    counted(first, 5)
    report(first, pick("late-1", 2, age_ms=3 * HOUR_MS))
    report(second, pick("late-2", 1, age_ms=20 * MINUTE_MS), pick("late-2", 1, age_ms=20 * MINUTE_MS + 700))
    require(site, 5)
    report(first, pick("now-1", 1, age_ms=30), pick("wrong", 1, at_ms=5))
    require(site, 3)
    site.require_agreement(technician=1)
    late = site.cloud.execute(
        "SELECT m.event, extract(epoch FROM now() - m.at)::int / 300 * 5 FROM movement m "
        "JOIN tenant t USING (tenant_id) WHERE t.name = %s ORDER BY m.event",
        [site.tenant],
    )
    assert late.fetchall() == [("late-1", 180), ("late-2", 20), ("now-1", 0), ("wrong", 0)]
    with closing(database.open_reader(first.agent.ledger)) as reader:
        assert {row.delivered() for row in queries.history(reader) if row.kind == "pick"} >= {"180 min late", ""}
        assert queries.status(reader, first.agent.ledger)["device_times_doubted"] == 1


def test_a_dead_letter_that_is_retried_has_the_time_of_its_first_arrival(site: SiteStack) -> None:
    """The forgotten scanner is registered after the shelf was counted."""
    post = site.make()
    book(post.agent.ledger, "receive", "tea", 9, destination="A-01")
    with Scanner(post.broker.port, "forgotten") as forgotten:
        forgotten.report(pick("e-1", 2))
        forgotten.say(DeviceReading(id="r-1", values={"temperature_c": 4.5}).encode(), Channel.DEVICE_READING)
        assert forgotten.wait_for_receipts(2)
    with closing(database.open_writer(post.agent.ledger)) as writer, database.transaction(writer):
        writer.execute("UPDATE dead_letter SET mono_ms = mono_ms - ?, at_ms = at_ms - ?", (HOUR_MS, HOUR_MS))
        writer.execute(statement("insert_device"), ("forgotten", "scanner"))
    counted(post, 5)
    assert retry_dead_letters(post.agent.ledger) == (2, 0)
    require(site, 5)
    with closing(database.open_reader(post.agent.ledger)) as reader:
        (late,) = (row for row in queries.history(reader) if row.kind == "pick")
        assert late.delivered() == "60 min late"
        (reading,) = queries.readings(reader)
        assert late.at_ms - 1_000 < reading.at_ms < late.at_ms + 1_000

"""The catalogue from a real database into a real ledger: everything once, what changed alone, in any weather."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cloud_store.base.connection import Connection
from cloud_store.provisioning import catalog as cloud_catalog
from cloud_store.tenancy import registry
from edge_agent.ledger import database
from edge_agent.ledger.ledger import Ledger
from edge_agent.provisioning import catalog
from edge_agent.provisioning.catalog import CatalogWriter
from testbed.hand_clock import HandClock
from testbed.store import StoreModule
from wire_protocol.catalog import PAGE_ENTRIES_MAX, CatalogItem, CatalogPage, CatalogPosition, CatalogRequest

pytestmark = pytest.mark.services

# `make long` does it with a hundred thousand.
ITEMS = int(os.environ.get("STOCKTIDE_TEST_ENTRIES", "200000")) // 10


@pytest.fixture
def store(connection: Connection, database_url: str) -> Iterator[StoreModule]:
    """A store; two tenants, the first with two sites."""
    registry.add_tenant(connection, "other")
    for tenant, site, gateway in (("acme", "berlin", "gw-a"), ("acme", "oslo", "gw-b"), ("other", "rome", "gw-c")):
        registry.add_site(connection, tenant, site)
        registry.add_gateway(connection, tenant, site, gateway)
    with closing(StoreModule(cloud_catalog, database_url)) as made:
        yield made


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A gateway's ledger."""
    with Ledger.create(tmp_path / "ledger.db", "gw-a", HandClock()) as made:
        yield made


def take(ledger: Ledger, page: CatalogPage) -> str:
    """Take a page in a transaction."""
    with database.transaction(ledger.connection):
        return CatalogWriter(ledger).take(page)


def fetch(store: StoreModule, ledger: Ledger, gateway: str = "gw-a") -> list[CatalogPage]:
    """Ask and take until there is no more."""
    pages: list[CatalogPage] = []
    while not pages or pages[-1].more:
        page = store.page(gateway, CatalogRequest(after=catalog.place(ledger.connection).position))
        assert page is not None
        assert len(page.encode()) <= CatalogPage.bytes_max
        assert take(ledger, page) == "taken"
        pages.append(page)
    return pages


def skus(ledger: Ledger) -> list[str]:
    """The items at the gateway."""
    return [item.sku for item in catalog.items(ledger.connection, limit=1_000_000)]


def test_all_items_reach_a_gateway_and_a_changed_one_comes_alone(
    store: StoreModule, connection: Connection, ledger: Ledger
) -> None:
    """In pages that fit a message; afterwards nothing is sent twice."""
    items = [CatalogItem(sku=f"SKU-{n:06}", name="Schraube M4×20 ✓" * 4) for n in range(ITEMS)]
    assert registry.add_items(connection, "acme", items) == ITEMS
    assert registry.add_locations(connection, "acme", "berlin", ["A-1", "A-2"]) == 2
    pages = fetch(store, ledger)
    assert len(pages) == ITEMS // PAGE_ENTRIES_MAX + 1
    assert catalog.size(ledger.connection) == (ITEMS, 2)
    changed = CatalogItem(sku="SKU-000007", name="Schraube M5", reorder_point=12, lot_tracked=True)
    assert registry.add_items(connection, "acme", [*items[:5], changed], replace=True) == 1
    [page] = fetch(store, ledger)
    assert (page.items, page.locations) == ((changed,), ())
    assert list(catalog.items(ledger.connection, "SKU-000007", limit=1)) == [changed]
    assert [len(each.items) for each in fetch(store, ledger)] == [0]


def test_long_names_make_shorter_pages(store: StoreModule, connection: Connection, ledger: Ledger) -> None:
    """A page has its bound in bytes."""
    names = [CatalogItem(sku=f"{n:03}" + "ß" * 61, name="𝄞" * 200) for n in range(500)]
    registry.add_items(connection, "acme", names)
    assert len(fetch(store, ledger)) > 1
    assert len(skus(ledger)) == 500


def test_a_change_in_the_middle_of_reading_is_not_missed(
    store: StoreModule, connection: Connection, ledger: Ledger
) -> None:
    """An item that moves to the end while the gateway reads is read there."""
    registry.add_items(connection, "acme", [CatalogItem(sku=f"SKU-{n:04}") for n in range(1200)])
    first = store.page("gw-a", CatalogRequest())
    assert first is not None
    take(ledger, first)
    changed = [CatalogItem(sku="SKU-0900", name="new"), CatalogItem(sku="SKU-0001", name="new")]
    registry.add_items(connection, "acme", changed, replace=True)
    fetch(store, ledger)
    assert len(skus(ledger)) == 1200
    for sku in ("SKU-0900", "SKU-0001"):
        [item] = catalog.items(ledger.connection, sku, limit=1)
        assert item.name is not None


def test_pages_that_do_not_follow_are_not_taken(store: StoreModule, connection: Connection, ledger: Ledger) -> None:
    """Delivered twice, or out of order: the position decides."""
    registry.add_items(connection, "acme", [CatalogItem(sku=f"SKU-{n:04}") for n in range(600)])
    first = store.page("gw-a", CatalogRequest())
    assert first is not None
    second = store.page("gw-a", CatalogRequest(after=first.upto))
    assert second is not None
    assert take(ledger, second) == "elsewhere"
    assert [take(ledger, first), take(ledger, first), take(ledger, second)] == ["taken", "elsewhere", "taken"]
    assert len(skus(ledger)) == 600


def test_a_cloud_that_has_lost_changes_is_read_anew(store: StoreModule, connection: Connection, ledger: Ledger) -> None:
    """After a failover: what only the lost server had must not stay at the gateway."""
    registry.add_items(connection, "acme", [CatalogItem(sku="kept"), CatalogItem(sku="lost")])
    fetch(store, ledger)
    connection.execute("UPDATE catalog SET version = version - 1000")
    connection.execute("UPDATE item SET catalog_version = catalog_version - 1000")
    connection.execute("DELETE FROM item WHERE sku = 'lost'")
    page = store.page("gw-a", CatalogRequest(after=catalog.place(ledger.connection).position))
    assert page is not None
    assert take(ledger, page) == "restart"
    fetch(store, ledger)
    assert skus(ledger) == ["kept"]


def test_tenants_and_sites_do_not_see_each_other(store: StoreModule, connection: Connection) -> None:
    """Whatever position is asked for."""
    registry.add_items(connection, "acme", [CatalogItem(sku="ours")])
    registry.add_items(connection, "other", [CatalogItem(sku="theirs")])
    registry.add_locations(connection, "acme", "berlin", ["B-1"])
    registry.add_locations(connection, "acme", "oslo", ["O-1"])
    seen = {}
    for gateway in ("gw-a", "gw-b", "gw-c"):
        page = store.page(gateway, CatalogRequest(after=CatalogPosition(version=0, key="l")))
        assert page is not None
        seen[gateway] = ([item.sku for item in page.items], list(page.locations))
    assert seen == {"gw-a": (["ours"], ["B-1"]), "gw-b": (["ours"], ["O-1"]), "gw-c": (["theirs"], [])}
    assert store.page("gw-x", CatalogRequest()) is None

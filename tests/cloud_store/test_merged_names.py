"""Two spellings of one item, or of one shelf, made one in every report, without touching what was booked (ADR 21)."""

from contextlib import closing
from datetime import UTC, datetime

import pytest

from cloud_store.base.connection import Connection
from cloud_store.base.errors import CannotMerge, UnknownName
from cloud_store.reports import history, listings, snapshots, stock_levels
from cloud_store.reports.history import AsOf
from cloud_store.reports.stock_levels import MovementFilter, StockFilter
from cloud_store.tenancy import merged_names, registry
from testbed.store import MergeSession
from tests.cloud_store.histories import NOW_MS, Chain, count, movement
from tests.tenancy import two_tenants
from wire_protocol import clock, stock
from wire_protocol.catalog import CatalogItem
from wire_protocol.entries import LedgerEntry
from wire_protocol.stock import Cell, EntryKey

MEANT, ODD, ODDER = "caf\u00e9", "cafe\u0301", "caf\u200b\u00e9"
SHELF, ODD_SHELF = "A 01", "A\u00a001"
HLC = clock.pack(NOW_MS)
EARLY: list[LedgerEntry] = [
    movement(HLC + 1, "receive", "@supplier", SHELF, 10, sku=MEANT, lot="L1"),
    movement(HLC + 2, "receive", "@supplier", SHELF, 5, sku=ODD, lot="L1"),
    movement(HLC + 3, "receive", "@supplier", ODD_SHELF, 3, sku=ODD, lot="L2"),
    movement(HLC + 4, "receive", "@supplier", "B", 7, sku="tea"),
    movement(HLC + 9, "pick", ODD_SHELF, "@customer", 1, sku="tea"),
]
# A gateway that was offline: its entries are among the earlier ones, and use a cell that nobody had used.
LATE: list[LedgerEntry] = [
    count(HLC + 5, SHELF, 4, sku=ODD, lot="L1"),
    movement(HLC + 6, "pick", SHELF, "@customer", 2, sku=ODD, lot="L1"),
    movement(HLC + 7, "receive", "@supplier", "B", 1, sku=ODDER, lot="L2"),
]
BOOKED = {
    Cell(SHELF, MEANT, "L1"): 10, Cell(SHELF, ODD, "L1"): 2, Cell(ODD_SHELF, ODD, "L2"): 3, Cell("B", ODDER, "L2"): 1,
    Cell("B", "tea", ""): 7, Cell(ODD_SHELF, "tea", ""): -1,
}  # fmt: skip
APART = {(cell.location, cell.sku, cell.lot): held for cell, held in BOOKED.items()}
MERGED = {
    (SHELF, MEANT, "L1"): 12, (SHELF, MEANT, "L2"): 3, ("B", MEANT, "L2"): 1,
    ("B", "tea", ""): 7, (SHELF, "tea", ""): -1,
}  # fmt: skip


@pytest.fixture
def berlin(connection: Connection) -> Connection:
    """A site with two gateways, the first of which has been merged; the meant item is registered."""
    registry.add_site(connection, "acme", "berlin")
    for gateway in ("gw-1", "gw-2"):
        registry.add_gateway(connection, "acme", "berlin", gateway)
    with closing(MergeSession(connection.info.dsn)) as merger:
        merger.merge([Chain("gw-1").seal(EARLY)])
    registry.add_items(connection, "acme", [CatalogItem(sku=MEANT, name="Coffee")])
    return connection


def late(connection: Connection) -> None:
    """The second gateway comes back."""
    with closing(MergeSession(connection.info.dsn)) as merger:
        merger.merge([Chain("gw-2").seal(LATE)])


def shown(
    connection: Connection, as_of: AsOf | None = None, limit: int = 100, **wanted: object
) -> dict[tuple[str, str, str], int]:
    """What is on hand, read in pages: now, or as of the end of both clocks."""
    asked = StockFilter(tenant="acme", **wanted)  # type: ignore[arg-type]
    rows, after = [], None
    while True:
        if as_of is None:
            page = stock_levels.stock(connection, asked, limit=limit, after=after)
        else:
            page = history.stock(connection, asked, as_of, limit=limit, after=after)
        rows += page.rows
        after = page.after
        if after is None:
            break
    found = {(row["location"], row["sku"], row["lot"]): row["on_hand"] for row in rows}
    assert len(found) == len(rows), "each name that is meant once"
    return found


def merge_all(connection: Connection) -> None:
    """Both odd items into the one that is meant, through each other, and the shelf."""
    for old, new in ((ODDER, ODD), (ODD, MEANT)):
        merged_names.merge(connection, "item", "acme", old, new)
    merged_names.merge(connection, "location", "acme", ODD_SHELF, SHELF, site="berlin")


@pytest.mark.parametrize("merged_first", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 100])
def test_reports_add_up_and_history_stays(berlin: Connection, limit: int, *, merged_first: bool) -> None:
    """Late entries under the old name, before the merge or after it, give the same; balances know nothing of it."""
    if merged_first:
        berlin.execute(
            "INSERT INTO item (tenant_id, sku, stub) SELECT tenant_id, %s, true FROM tenant", [ODDER]
        )  # known before it is booked
        merge_all(berlin)
        late(berlin)
    else:
        late(berlin)
        assert shown(berlin, limit=limit) == APART
        merge_all(berlin)
    now = AsOf(known_at=datetime.now(UTC))
    assert shown(berlin, limit=limit) == shown(berlin, AsOf(), limit) == shown(berlin, now, limit) == MERGED
    keyed = [(EntryKey(entry.hlc, gateway, "", n), entry) for gateway, entries in (("gw-1", EARLY), ("gw-2", LATE))
             for n, entry in enumerate(entries)]  # fmt: skip
    booked = snapshots.balances(berlin, "acme", "berlin")
    assert list(stock.differences(booked.items(), stock.oracle(keyed).on_hand.items())) == []
    assert booked | BOOKED == booked
    assert snapshots.imbalance(berlin) == {}


def test_every_item_sums_to_zero_in_what_is_shown(berlin: Connection) -> None:
    """Also with the world outside the shelves, now and in the past."""
    late(berlin)
    merge_all(berlin)
    for as_of in (None, AsOf()):
        rows = shown(berlin, as_of, virtual=True)
        assert {sku: sum(held for (_, other, _), held in rows.items() if other == sku) for sku in (MEANT, "tea")} == {
            MEANT: 0,
            "tea": 0,
        }


def test_either_name_finds_all_of_it(berlin: Connection) -> None:
    """A person who types the old name, or scans an old label, must not be answered that there is nothing."""
    late(berlin)
    merge_all(berlin)
    of_item = {key: held for key, held in MERGED.items() if key[1] == MEANT}
    of_shelf = {key: held for key, held in MERGED.items() if key[0] == SHELF}
    for as_of in (None, AsOf()):
        assert all(shown(berlin, as_of, sku=name) == of_item for name in (MEANT, ODD, ODDER))
        assert all(shown(berlin, as_of, location=name) == of_shelf for name in (SHELF, ODD_SHELF))
    for name in (MEANT, ODDER):
        page = stock_levels.movements(berlin, MovementFilter(tenant="acme", sku=name), limit=100)
        assert {row["sku"] for row in page.rows} == {MEANT}
        assert len(page.rows) == 5  # all but the count
    page = stock_levels.movements(berlin, MovementFilter(tenant="acme", location=ODD_SHELF), limit=100)
    assert {*(row["source"] for row in page.rows), *(row["destination"] for row in page.rows)} == {
        SHELF, "@supplier", "@customer",
    }  # fmt: skip
    assert {row["sku"]: row["merged_into"] for row in listings.items(berlin, "acme", limit=9).rows} == {
        MEANT: None, ODD: MEANT, ODDER: MEANT, "tea": None,
    }  # fmt: skip


def test_a_dashboard_sees_the_names_that_are_meant(berlin: Connection) -> None:
    """A sum over its view by SKU must be the one that the API gives."""
    late(berlin)
    merge_all(berlin)
    by_cell = (
        "SELECT location, sku, lot, sum(on_hand)::bigint FROM stock WHERE NOT virtual AND on_hand <> 0 GROUP BY 1, 2, 3"
    )
    with two_tenants.session(berlin, login=None, tenant="acme"):
        berlin.execute("SET LOCAL search_path = tenant_view, public")
        rows = berlin.execute(by_cell).fetchall()
        skus = berlin.execute("SELECT DISTINCT sku FROM moved").fetchall()
    assert {(location, sku, lot): held for location, sku, lot, held in rows} == MERGED
    assert set(skus) == {(MEANT,), ("tea",)}


def test_apart_again_they_are_as_before(berlin: Connection) -> None:
    """A merge of what was not the same is taken back without loss."""
    late(berlin)
    merge_all(berlin)
    for name in (ODD, ODDER):
        merged_names.split(berlin, "item", "acme", name)
    merged_names.split(berlin, "location", "acme", ODD_SHELF, site="berlin")
    assert shown(berlin) == shown(berlin, AsOf()) == APART


def test_what_cannot_be_merged_says_why(berlin: Connection) -> None:
    """No circles, no chains, no sums of grams and pieces, nothing of another tenant, and no virtual location."""
    registry.add_items(berlin, "acme", [CatalogItem(sku="flour", unit="kg", scale=3)])
    registry.add_tenant(berlin, "other")
    registry.add_items(berlin, "other", [CatalogItem(sku="theirs")])

    def refused(noun: merged_names.Noun, old: str, new: str, error: type[Exception], said: str) -> None:
        with pytest.raises(error, match=said):
            merged_names.merge(berlin, noun, "acme", old, new, site="berlin")

    refused("item", MEANT, MEANT, CannotMerge, "one item already")
    refused("item", "tea", "flour", CannotMerge, "1/10")
    refused("item", "tea", "theirs", UnknownName, "theirs")
    refused("location", "@customer", SHELF, UnknownName, "@customer")
    refused("location", SHELF, "nowhere", UnknownName, "nowhere")
    merged_names.merge(berlin, "item", "acme", ODD, MEANT)
    refused("item", MEANT, ODD, CannotMerge, "stands for another")
    refused("item", "tea", ODD, CannotMerge, "stands for another")
    with pytest.raises(CannotMerge, match="stands for no other"):
        merged_names.split(berlin, "item", "acme", "tea")

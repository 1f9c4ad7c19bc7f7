"""Counts that come late, many at once. Broken when they read what they need not, or leave other stock than the oracle.

That any history gives the oracle's stock is tested in `test_merge_agrees_with_oracle`; here are the shapes of a
stocktake that was made offline.
"""

import json
import random
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import pytest

from cloud_store.base import sql
from cloud_store.base.connection import Connection, connect
from cloud_store.base.ledger_numbers import CellKey
from cloud_store.merge import cells, late_counts
from cloud_store.merge.batch import Merger
from cloud_store.merge.cells import Hours, PendingHours
from cloud_store.reports import snapshots
from cloud_store.tenancy import registry
from testbed.store import MergeSession
from tests.cloud_store.histories import NOW_MS, Chain, count, movement
from wire_protocol import clock, stock
from wire_protocol.entries import LedgerEntry
from wire_protocol.stock import EntryKey

SHELVES = 40
MOVEMENTS = 4_000
HOUR_MS = 3_600_000


def add_site(connection: Connection, *gateways: str) -> None:
    """A tenant with a site of some gateways."""
    registry.add_tenant(connection, "acme")
    registry.add_site(connection, "acme", "berlin")
    for gateway in gateways:
        registry.add_gateway(connection, "acme", "berlin", gateway)


def keyed(chain: Chain, entries: Sequence[LedgerEntry], first_seq: int = 1) -> list[tuple[EntryKey, LedgerEntry]]:
    """Entries with their keys in the log of a chain."""
    return [(EntryKey(e.hlc, chain.gateway, chain.epoch, seq), e) for seq, e in enumerate(entries, first_seq)]


def busy(rng: random.Random, span_ms: int) -> list[LedgerEntry]:
    """Movements of one SKU over many shelves, now and then two at the same tick."""
    step_ms = span_ms // 100_000  # so that some clocks are equal, however long the span is
    return [
        movement(
            clock.pack(NOW_MS + rng.randrange(100_000) * step_ms), "receive", "@supplier", f"A-{rng.randrange(SHELVES)}"
        )
        for _ in range(MOVEMENTS)
    ]


@pytest.mark.parametrize("span_ms", [100_000, 4 * HOUR_MS, 1_000 * HOUR_MS])
@pytest.mark.parametrize("seed", range(2))
def test_a_stocktake_that_comes_late_gives_the_oracle_s_stock(database_url: str, seed: int, span_ms: int) -> None:
    """Several counts of a shelf in one frame, before, between and after those that are stored, at equal ticks too."""
    rng = random.Random(seed)
    moved, first, second = Chain("gw-a"), Chain("gw-b"), Chain("gw-c")
    movements = sorted(busy(rng, span_ms), key=lambda entry: entry.hlc)
    ticks = [entry.hlc for entry in movements]
    counts: list[list[LedgerEntry]] = [
        [count(rng.choice(ticks), f"A-{rng.randrange(SHELVES)}", rng.randrange(200)) for _ in range(300)]
        for _ in range(2)
    ]
    entries = keyed(moved, movements) + keyed(first, counts[0]) + keyed(second, counts[1])
    with closing(connect(database_url, application="test")) as connection, MergeSession(database_url) as merger:
        add_site(connection, "gw-a", "gw-b", "gw-c")
        for start in range(0, MOVEMENTS, 500):
            merger.merge([moved.seal(movements[start : start + 500])])
        merger.merge([first.seal(counts[0])])
        merger.merge([second.seal(counts[1])])
        expected = stock.oracle(entries)
        found = snapshots.balances(connection, "acme", "berlin")
        assert list(stock.differences(found.items(), expected.on_hand.items())) == []
        assert snapshots.variances(connection, "acme", "berlin") == expected.variance
        assert snapshots.imbalance(connection) == {}


def test_late_counts_are_added_up_by_hours(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its time, a count reads single movements of two hours of its own shelf at most."""
    rng = random.Random(1)
    asked: list[int] = []
    original = late_counts._range_columns

    def watched(ranges: Sequence[late_counts._Range]) -> dict[str, object]:
        columns = original(ranges)
        with closing(connect(database_url, application="test")) as looking:
            looking.execute("SET enable_seqscan = off")  # the table is small here, and was never analysed
            statement = b"EXPLAIN (ANALYZE, FORMAT JSON) " + sql.load("late_counts")["moved"]
            [[plan]] = looking.execute(statement, columns)
        asked.append(rows_read(plan[0]["Plan"]))
        return columns

    monkeypatch.setattr(late_counts, "_range_columns", watched)
    chain, late = Chain("gw-a"), Chain("gw-b")
    with closing(connect(database_url, application="test")) as connection, MergeSession(database_url) as merger:
        add_site(connection, "gw-a", "gw-b")
        movements = sorted(busy(rng, 1_000 * HOUR_MS), key=lambda entry: entry.hlc)
        for start in range(0, MOVEMENTS, 500):
            merger.merge([chain.seal(movements[start : start + 500])])
        early = [count(clock.pack(NOW_MS - 1), f"A-{shelf}", 0) for shelf in range(SHELVES)]
        assert merger.merge([late.seal(early)]).late_counts == {"gw-b": SHELVES}
        for part in (0.99, 0.5, 0.25):
            at_ms = NOW_MS + round(part * 1_000 * HOUR_MS)
            merger.merge([late.seal([count(clock.pack(at_ms), f"A-{shelf}", 0) for shelf in range(SHELVES)])])
    assert len(asked) == 4
    assert max(asked) < MOVEMENTS / 20, asked


def test_hours_that_do_not_add_up_are_made_again(database_url: str) -> None:
    """Cells from before there were hours, or merged by a worker that knows none."""
    rng = random.Random(3)
    chain, late = Chain("gw-a"), Chain("gw-b")
    movements = sorted(busy(rng, 50 * HOUR_MS), key=lambda entry: entry.hlc)[:500]
    counts: list[LedgerEntry] = [
        count(clock.pack(NOW_MS + n * HOUR_MS), f"A-{n % SHELVES}", n) for n in rng.sample(range(60), 40)
    ]
    with closing(connect(database_url, application="test")) as connection, MergeSession(database_url) as merger:
        add_site(connection, "gw-a", "gw-b")
        merger.merge([chain.seal(movements)])
        connection.execute("DELETE FROM cell_hour WHERE mod(hour, 3) = 0")
        merger.merge([late.seal(counts)])
        expected = stock.oracle(keyed(chain, movements) + keyed(late, counts))
        found = snapshots.balances(connection, "acme", "berlin")
        assert list(stock.differences(found.items(), expected.on_hand.items())) == []
        assert snapshots.variances(connection, "acme", "berlin") == expected.variance


def rows_read(plan: dict[str, object]) -> int:
    """The rows that the scans of a plan gave, the joins above them left out."""
    below = plan.get("Plans", [])
    assert isinstance(below, list)
    own = 0
    if "Index Scan" in str(plan["Node Type"]) and "movement" in json.dumps(plan.get("Index Name", "")):
        own = int(float(str(plan["Actual Rows"])) * float(str(plan["Actual Loops"])))
    return own + sum(rows_read(each) for each in below)


def test_hours_are_written_by_many_merges_at_once(database_url: str) -> None:
    """A merge writes none; those of a late count's cells are written before it, the others when somebody asks."""
    rng = random.Random(4)
    chain, late = Chain("gw-a"), Chain("gw-b")
    movements = sorted(busy(rng, 50 * HOUR_MS), key=lambda entry: entry.hlc)[:600]
    merger = Merger()
    with (
        closing(connect(database_url, application="test")) as connection,
        MergeSession(database_url, merger) as session,
    ):
        add_site(connection, "gw-a", "gw-b")
        for start in range(0, 600, 100):
            session.merge([chain.seal(movements[start : start + 100])])
        hours = b"SELECT count(*), count(DISTINCT location_id) FROM cell_hour"
        assert connection.execute(hours).fetchone() == (0, 0)
        counted = count(clock.pack(NOW_MS + HOUR_MS), "A-0", 5)
        assert session.merge([late.seal([counted])]).late_counts == {"gw-b": 1}
        written, shelves = connection.execute(hours).fetchone() or (0, 0)
        assert shelves == 1
        assert written > 1
        late_counts.add_hours(connection, merger.hours.take())
        assert len(merger.hours) == 0
        wrong = connection.execute(
            "SELECT location_id, sum(h.moved) FROM balance b JOIN cell_hour h USING (location_id, item_id, lot_id)"
            " GROUP BY location_id, item_id, lot_id, b.moved HAVING sum(h.moved) <> b.moved"
        ).fetchall()
        assert wrong == []
        expected = stock.oracle(keyed(chain, movements) + keyed(late, [counted]))
        found = snapshots.balances(connection, "acme", "berlin")
        assert list(stock.differences(found.items(), expected.on_hand.items())) == []


@pytest.mark.bound("cloud_store.merge.cells.PENDING_HOURS_MAX")
def test_hours_that_wait_are_added_up_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hot cell's hour is one row however often it moved; when there are too many they are forgotten."""
    monkeypatch.setattr(cells, "PENDING_HOURS_MAX", 30)
    pending = PendingHours()

    def hours(first: int, number: int) -> Hours:
        ids = np.arange(first, first + number, dtype=np.int64)
        return Hours(ids, ids, ids * 0, ids * 0 + 7, ids * 0 + 2)

    for _ in range(10):
        pending.add(hours(1, 20))
    assert len(pending) <= 30
    own = pending.take_of({CellKey(3, 3, 0), CellKey(99, 99, 0)})
    assert [column.tolist() for column in own] == [[3], [3], [0], [7], [20]]
    left = pending.take()
    assert (len(left.hours), int(left.moved.sum())) == (19, 380)
    pending.add(hours(1, 31))
    assert len(pending) == len(pending.take().hours) == 0

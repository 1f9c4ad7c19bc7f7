"""Counts that come late, many at once. Broken when they read what they need not, or leave other stock than the oracle.

That any history gives the oracle's stock is tested in `test_merge_agrees_with_oracle`; here are the shapes of a
stocktake that was made offline.
"""

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from cloud_store.base import sql
from cloud_store.base.connection import Connection, connect
from cloud_store.merge import late_counts
from cloud_store.reports import snapshots
from cloud_store.tenancy import registry
from testbed.eventually import eventually
from testbed.store import MergeSession
from tests.cloud_store.histories import NOW_MS, Chain, count, movement
from wire_protocol import clock, stock
from wire_protocol.entries import LedgerEntry, Movement
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


@pytest.mark.parametrize("lost", ["DELETE FROM cell_history_new WHERE mod(hour, 3) = 0", "TRUNCATE cell_history_new"])
def test_a_history_that_is_not_whole_is_made_again(database_url: str, lost: str) -> None:
    """Of cells from before there was one, also where what moved adds up to nothing, or that an older worker merged."""
    rng = random.Random(3)
    chain, late = Chain("gw-a"), Chain("gw-b")
    movements = sorted(busy(rng, 50 * HOUR_MS), key=lambda entry: entry.hlc)[:250]
    gone = [
        movement(clock.pack(NOW_MS + 60 * HOUR_MS + n), "pick", shelf, "@customer")
        for n, shelf in enumerate(entry.destination for entry in movements if isinstance(entry, Movement))
    ]
    counts: list[LedgerEntry] = [
        count(clock.pack(NOW_MS + n * HOUR_MS), f"A-{n % SHELVES}", n) for n in rng.sample(range(60), 40)
    ]
    with closing(connect(database_url, application="test")) as connection, MergeSession(database_url) as merger:
        add_site(connection, "gw-a", "gw-b")
        merger.merge([chain.seal([*movements, *gone])])
        assert connection.execute("SELECT sum(moved) FROM cell_history_new").fetchone() == (0,)
        connection.execute(lost.encode())
        if "TRUNCATE" in lost:
            connection.execute("UPDATE balance SET history_whole = false")
        merger.merge([late.seal(counts)])
        expected = stock.oracle(keyed(chain, [*movements, *gone]) + keyed(late, counts))
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


def test_history_is_written_with_the_merge_and_folded_later(database_url: str) -> None:
    """Late counts find it before, in the middle and after; two that fold at once take nothing twice."""
    rng = random.Random(4)
    chain, late = Chain("gw-a"), Chain("gw-b")
    movements = sorted(busy(rng, 50 * HOUR_MS), key=lambda entry: entry.hlc)[:600]
    counts: list[LedgerEntry] = []
    with (
        closing(connect(database_url, application="test")) as connection,
        closing(connect(database_url, application="other")) as other,
        MergeSession(database_url) as session,
        ThreadPoolExecutor() as pool,
    ):
        add_site(connection, "gw-a", "gw-b")

        def require_agreement() -> None:
            shelves = [count(clock.pack(NOW_MS + rng.randrange(50) * HOUR_MS), f"A-{n}", n) for n in range(SHELVES)]
            counts.extend(shelves)
            session.merge([late.seal(shelves)])
            expected = stock.oracle(keyed(chain, movements) + keyed(late, counts))
            found = snapshots.balances(connection, "acme", "berlin")
            assert list(stock.differences(found.items(), expected.on_hand.items())) == []
            assert snapshots.variances(connection, "acme", "berlin") == expected.variance
            assert connection.execute(_WRONG_HISTORIES).fetchall() == []

        for start in range(0, 600, 100):
            session.merge([chain.seal(movements[start : start + 100])])
        require_agreement()
        written = connection.execute("SELECT count(*) FROM cell_history_new").fetchone()
        assert late_counts.fold_history(connection, 100) == 100
        require_agreement()
        folding = [pool.submit(fold_all, of) for of in (connection, other)]
        assert (100 + sum(each.result() for each in folding),) == written
        require_agreement()
        assert connection.execute("SELECT count(*) FROM cell_history_new").fetchone() == (0,)


_WRONG_HISTORIES = """
SELECT location_id, b.moved, h.moved
FROM balance b
JOIN location l USING (location_id)
LEFT JOIN (
    SELECT location_id, item_id, lot_id, sum(moved) AS moved
    FROM (TABLE cell_history UNION ALL TABLE cell_history_new) AS both_tables
    GROUP BY location_id, item_id, lot_id
) AS h USING (location_id, item_id, lot_id)
WHERE NOT l.virtual AND (coalesce(h.moved, 0) <> b.moved OR NOT b.history_whole)
"""


def fold_all(connection: Connection) -> int:
    """Fold in small steps until there is nothing left; returns how many rows."""
    total = 0
    while taken := late_counts.fold_history(connection, 30):
        total += taken
    return total


def test_history_that_is_made_again_waits_for_what_is_folded(database_url: str) -> None:
    """Else what is folded in that moment would be there twice."""
    chain, late = Chain("gw-a"), Chain("gw-b")
    moved = [movement(clock.pack(NOW_MS + n * HOUR_MS), "receive", "@supplier", "A-1") for n in range(10)]
    counted = [count(clock.pack(NOW_MS + 5 * HOUR_MS), "A-1", 50)]
    with (
        closing(connect(database_url, application="test")) as connection,
        MergeSession(database_url) as session,
        ThreadPoolExecutor() as pool,
    ):
        add_site(connection, "gw-a", "gw-b")
        session.merge([chain.seal(moved)])
        connection.execute("UPDATE balance SET history_whole = false")
        with connection.transaction():
            assert late_counts.fold_history(connection, 1_000) == 10
            merging = pool.submit(session.merge, [late.seal(counted)])
            with closing(connect(database_url, application="looking")) as looking:
                eventually(lambda: looking.execute(_WAITING).fetchone() == (1,))
        assert merging.result().late_counts == {"gw-b": 1}
        assert connection.execute(_WRONG_HISTORIES).fetchall() == []


_WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'cell_history'::regclass"

"""Gateways of one site: whatever order they hear of each other in, they end with the same stock."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.ledger import audit, database, queries
from edge_agent.ledger.drafts import draft
from edge_agent.ledger.site_logs import SiteLogWriter, known_logs
from testbed import sites
from testbed.gateways import epoch
from testbed.sites import START_MS, SiteGateway, Step, defined
from testbed.workload import Sealer, Warehouse
from wire_protocol import frames
from wire_protocol.errors import InvalidFrame
from wire_protocol.replication import Verdict
from wire_protocol.site_messages import SiteFrame
from wire_protocol.stock import Cell, EntryKey, imbalance, oracle

SHELF = Cell("A-1", "screw", "")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(history=sites.steps, seed=st.integers(0, 2**16))
def test_all_gateways_of_a_site_end_with_the_stock_of_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, history: list[Step], seed: int
) -> None:
    """Late and equal times, skewed clocks, frames doubled, too early, re-batched: the same balances and variances."""
    chance, cloud = Random(seed), []
    with sites.gateways(tmp_path_factory.mktemp("site"), ["gw-a", "gw-b", "gw-c"]) as made:
        for step in history:
            gateway = made[step.gateway]
            gateway.append(*step.booked, late_ms=step.late_ms)
            gateway.clock.turn(step.turn_ms)
            if step.seal:
                cloud += gateway.seal(chance.choice([1, 2, 500]))
            gateway.receive(*chance.choices(cloud, k=step.hear) if cloud else [])
        for gateway in made:
            cloud += gateway.seal()
        expected = defined(made)
        for gateway in made:
            gateway.fetch(cloud)
            stock = gateway.stock()
            assert stock.on_hand == expected.on_hand
            assert stock.variance == expected.variance
            assert imbalance(stock.on_hand.items()) == {}
            assert audit.verify(gateway.ledger.connection).findings == []
            audit.rebuild(gateway.ledger)
            assert gateway.stock() == stock
            assert audit.verify(gateway.ledger.connection).findings == []


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[SiteGateway]]:
    """Two gateways of one site; ten screws are on the shelf, and both know it."""
    with sites.gateways(tmp_path, ["gw-a", "gw-b"]) as made:
        first = made[0]
        first.append(draft("receive", "screw", 10, destination="A-1"))
        made[1].fetch(first.seal())
        for gateway in made:
            gateway.clock.turn(60_000)
        yield made


def on_hand(gateway: SiteGateway) -> int:
    """What a gateway shows on the shelf."""
    return queries.balances(gateway.ledger.connection)[SHELF]


@pytest.mark.parametrize("pick_first", [True, False])
def test_a_count_and_concurrent_picks_end_right_in_both_orders_of_arrival(
    pair: list[SiteGateway], *, pick_first: bool
) -> None:
    """A technician counts at one gateway while goods are picked at the other; neither has heard of the other yet."""
    first, second = pair
    for gateway in (second, first) if pick_first else (first, second):
        if gateway is second:
            gateway.append(draft("pick", "screw", 2, source="A-1"))
        else:
            gateway.append(draft("count", "screw", 7, location="A-1"))
        for each in pair:
            each.clock.turn(1_000)
    picks, counts = second.seal(), first.seal()[-1:]
    first.fetch(picks)
    second.fetch(counts)
    # Picked before the count: it is in what was found, and the count's variance is one less. After it: it is missing.
    assert [on_hand(gateway) for gateway in pair] == ([7, 7] if pick_first else [5, 5])
    variance = {True: -1, False: -3}[pick_first]
    assert [set(gateway.stock().variance.values()) for gateway in pair] == [{variance}] * 2


def test_what_is_booked_after_hearing_of_another_gateway_is_later(pair: list[SiteGateway]) -> None:
    """A technician who sees the other's pick and then counts has counted it, although her gateway's clock is behind."""
    first, second = pair
    second.append(draft("pick", "screw", 2, source="A-1"))
    first.clock.turn(-240_000)
    first.fetch(second.seal())
    first.append(draft("count", "screw", 8, location="A-1"))
    second.fetch(first.seal())
    assert [on_hand(gateway) for gateway in pair] == [8, 8]


def test_a_gateway_with_a_clock_years_ahead_drags_nobody_along(pair: list[SiteGateway]) -> None:
    """Otherwise one bad clock would make the whole site's entries years late forever."""
    first, second = pair
    second.clock.turn(20 * 365 * 86_400_000)
    second.append(draft("pick", "screw", 2, source="A-1"))
    first.fetch(second.seal())
    first.append(draft("pick", "screw", 1, source="A-1"))
    assert max(key.hlc >> 16 for key, _ in first.own_entries()) <= first.clock.now_ms()
    assert on_hand(first) == 7


def test_rejected_entries_count_nowhere(pair: list[SiteGateway]) -> None:
    """What the cloud does not count, no gateway of the site may."""
    first, second = pair
    first.append(draft("pick", "screw", 1, source="A-1"), draft("pick", "screw", 4, source="A-1"))
    made = first.seal()[-1]
    assert second.receive(replace(made, rejected=(3,))) == [Verdict.MERGE]
    assert on_hand(second) == 9
    assert audit.verify(second.ledger.connection).findings == []


def test_a_frame_too_early_or_again_changes_nothing(pair: list[SiteGateway]) -> None:
    """The cloud pushes what it can; order and loss are the asking's business."""
    first, second = pair
    for _ in range(2):
        first.append(draft("pick", "screw", 1, source="A-1"))
        first.seal()
    second_frame, third_frame = first.sealed[1:]
    assert second.receive(third_frame, second_frame, second_frame) == [Verdict.AHEAD, Verdict.MERGE, Verdict.DUPLICATE]
    assert second.receive(third_frame) == [Verdict.MERGE]
    assert on_hand(second) == 8
    assert [(log.gateway, log.frame, log.seq) for log in known_logs(second.ledger.connection)] == [("gw-a", 3, 3)]


def test_a_gateway_is_not_told_its_own_log(pair: list[SiteGateway]) -> None:
    """Its own entries are in its ledger; booked again they would count twice."""
    first, _ = pair
    assert first.receive(*first.sealed) == [Verdict.DUPLICATE]
    assert on_hand(first) == 10


def test_a_log_with_another_history_than_the_clouds_is_fetched_anew(pair: list[SiteGateway], tmp_path: Path) -> None:
    """The cloud fell back, and the other gateway was restored meanwhile: the cloud's word counts."""
    first, second = pair
    first.append(draft("pick", "screw", 1, source="A-1"))
    second.fetch(first.seal())
    epoch = first.ledger.epoch
    with sites.gateways(tmp_path / "other", ["gw-a"], epoch=epoch) as (other,):
        other.append(draft("receive", "screw", 10, destination="A-1"))
        other.seal()
        other.append(draft("pick", "screw", 3, source="A-1"))
        other.seal()
        assert second.receive(other.sealed[1]) == [Verdict.FORK]
        second.fetch(other.sealed)
    assert on_hand(second) == 7
    assert audit.verify(second.ledger.connection).findings == []


def test_a_hostile_frame_from_the_cloud_is_refused_as_a_whole(pair: list[SiteGateway]) -> None:
    """Readings, unreadable rows and foreign epochs do not belong into a site's ledger."""
    first, second = pair
    broken = SiteFrame(gateway="gw-a", received_ms=1, frame=first.sealed[0].frame[:-5])
    with pytest.raises(InvalidFrame):
        second.receive(broken)
    with database.transaction(second.ledger.connection):
        decoded = frames.decode(first.sealed[0].frame)
        lying = frames.Frame(decoded.header.model_copy(update={"stream": "readings"}), decoded.digest, decoded.columns)
        assert SiteLogWriter(second.ledger).receive(first.sealed[0], lying) is Verdict.DUPLICATE


def test_another_gateway_whose_clock_goes_back_is_no_damage_of_this_ledger(tmp_path: Path) -> None:
    """The cloud takes such a log, and the stock is right whatever the order: `verify` must not call it wrong."""
    entries = list(islice(Warehouse(7, START_MS, counts=0.4).entries(), 40))
    for here, there in ((10, 11), (3, 30)):
        entries[here], entries[there] = entries[there], entries[here]
    with sites.gateways(tmp_path, ["gw-1"]) as (gateway,):
        sealed = Sealer("gw-2", epoch()).seal(entries)
        assert gateway.receive(SiteFrame(gateway="gw-2", received_ms=START_MS, frame=sealed)) == [Verdict.MERGE]
        assert audit.verify(gateway.ledger.connection).findings == []
        keyed = [(EntryKey(entry.hlc, "gw-2", epoch(), n), entry) for n, entry in enumerate(entries, 1)]
        assert gateway.stock().on_hand == oracle(keyed).on_hand

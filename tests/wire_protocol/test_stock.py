"""Stock: a pure function of the set of entries, and the incremental algebra that agrees with it."""

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.wire_protocol.strategies import BOOT, EPOCH, OLD_EPOCH, histories
from wire_protocol.entries import ENTRY, Count, LedgerEntry, Movement
from wire_protocol.names import ADJUST
from wire_protocol.stock import Balance, Cell, EntryKey, counted_cell, deltas, differences, imbalance, oracle

History = list[tuple[EntryKey, LedgerEntry]]


@given(histories(), st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(history: History, rng: random.Random) -> None:
    """Invariant I3: if order mattered, two ends that got the same entries would disagree."""
    shuffled = history + rng.choices(history, k=len(history)) if history else []
    rng.shuffle(shuffled)
    assert oracle(shuffled) == oracle(history)


@given(histories())
def test_the_sum_over_all_locations_is_zero(history: History) -> None:
    """Invariant I4: goods appear and vanish only through the virtual locations."""
    assert imbalance(oracle(history).on_hand.items()) == {}


@given(histories(), st.randoms(use_true_random=False))
def test_the_incremental_balance_gives_the_oracles_answer_in_any_order(history: History, rng: random.Random) -> None:
    """SQLite and SQL keep balances by this algebra; where it looks back, history decides."""
    rng.shuffle(history)
    balances: dict[Cell, Balance] = {}
    done: History = []
    for key, entry in history:
        if isinstance(entry, Count):
            cell = counted_cell(entry)
            later = sum(
                d.quantity for k, e in done if k > key and isinstance(e, Movement) for d in deltas(e) if d.cell == cell
            )
            before = balances.get(cell, Balance())
            assert before.looks_back(key) or later == 0
            balances[cell] = before.after_count(key, entry.quantity, later)
        else:
            for cell, quantity in deltas(entry):
                balances[cell] = balances.get(cell, Balance()).after_movement(key, quantity)
        done.append((key, entry))
    expected = oracle(history).on_hand
    shelves = {cell: balance.on_hand for cell, balance in balances.items() if cell.location != ADJUST}
    assert not list(differences(shelves.items(), [(c, q) for c, q in expected.items() if c.location != ADJUST]))
    for cell in {cell for cell in expected if cell.location == ADJUST}:
        booked = balances.get(cell, Balance()).on_hand
        shares = sum(b.moved - b.on_hand for c, b in balances.items() if (c.sku, c.lot) == cell[1:] and c != cell)
        assert booked + shares == expected[cell]


def entry(kind: str, quantity: int, at: int, **ends: str) -> tuple[EntryKey, LedgerEntry]:
    """A movement or count of one SKU at a time."""
    common = {"hlc": at, "boot": BOOT, "mono_ms": 0, "sku": "tea", "quantity": quantity}
    made = ENTRY.validate_python(common | {"kind": kind} | ends)
    assert isinstance(made, Movement | Count)
    return EntryKey(at, "gw", EPOCH, at), made


def test_a_pick_that_arrives_after_a_later_count_changes_the_variance_and_not_the_stock() -> None:
    """The design's own example: an offline gateway reports a pick two days late."""
    received = entry("receive", 10, 1, source="@supplier", destination="A")
    late_pick = entry("pick", 3, 2, source="A", destination="@customer")
    counted = entry("count", 7, 3, location="A")
    without, with_it = oracle([received, counted]), oracle([received, counted, late_pick])
    image_store, adjust = Cell("A", "tea", ""), Cell(ADJUST, "tea", "")
    assert (without.on_hand[image_store], without.variance[counted[0]], without.on_hand[adjust]) == (7, -3, 3)
    assert (with_it.on_hand[image_store], with_it.variance[counted[0]], with_it.on_hand.get(adjust, 0)) == (7, 0, 0)


def test_equal_clocks_are_ordered_by_gateway_epoch_and_number() -> None:
    """A tie decided differently at the two ends would be a difference nobody can explain."""
    first = EntryKey(5, "gw-a", EPOCH, 9), entry("count", 1, 5, location="A")[1]
    second = EntryKey(5, "gw-b", OLD_EPOCH, 3), entry("count", 2, 5, location="A")[1]
    third = EntryKey(5, "gw-b", EPOCH, 1), entry("count", 3, 5, location="A")[1]
    assert oracle([second, first]).on_hand[Cell("A", "tea", "")] == 2
    assert oracle([third, second, first]).on_hand[Cell("A", "tea", "")] == 3

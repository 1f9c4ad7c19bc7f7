"""Stock proof: equal stock looks equal, different stock different, and the search finds the cells.

Broken when: the search misses a cell, invents one, ships the whole stock, or can be kept busy forever.
"""

import json
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.wire_protocol.strategies import EPOCH, histories
from wire_protocol import proof, stock
from wire_protocol.entries import LedgerEntry
from wire_protocol.proof import Bisection, DigestAnswer, DigestQuestion, StockDigest
from wire_protocol.stock import Cell, EntryKey

Held = dict[Cell, int]
MESSAGE_BYTES_MAX = 256 * 1024
HERE = proof.log_position([("gw-1", EPOCH, 7)])
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)

names = st.text("abc水1", min_size=1, max_size=3)
cells = st.builds(Cell, names, names, st.just("") | names)
stocks = st.dictionaries(cells, st.integers(-(10**12), 10**12), max_size=300)


@dataclass
class Link:
    """Carries questions and answers as JSON, and remembers how much that was."""

    theirs: Held
    position: int = HERE
    cells: int = 0
    sizes: list[int] = field(default_factory=list)

    def find(self, ours: Held) -> Bisection:
        """Bisect to the end."""
        bisection = Bisection(ours.items(), HERE)
        while (question := bisection.next_question()) is not None:
            asked = DigestQuestion.model_validate_json(question.model_dump_json())
            sent = proof.answer(asked, self.theirs.items(), self.position).model_dump_json()
            answer = DigestAnswer.model_validate_json(sent)
            self.cells += len(answer.cells)
            self.sizes.append(len(sent))
            bisection.receive(answer)
        return bisection


def many(number: int) -> Held:
    """Stock in so many cells."""
    return {Cell(f"A-{n % 97:02}", f"sku-{n}", "" if n % 3 else "L1"): n + 1 for n in range(number)}


# --- the digest -------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(cells, INT64), max_size=60), st.randoms(use_true_random=False))
def test_neither_order_nor_grouping_changes_the_digest(changes: list[tuple[Cell, int]], rng: random.Random) -> None:
    """The cloud books in batches what the edge booked one by one, and other gateways' entries in between."""
    one_by_one = 0
    for cell, change in rng.sample(changes, len(changes)):
        one_by_one = proof.add(one_by_one, proof.digest_change(cell, change))
    totals: Held = {}
    for cell, change in changes:
        totals[cell] = totals.get(cell, 0) + change
    assert one_by_one == proof.stock_digest(totals.items()) == proof.stock_digest(changes)
    assert 0 <= one_by_one < 1 << 63


@given(histories())
def test_the_digest_kept_up_is_the_digest_from_scratch(history: list[tuple[EntryKey, LedgerEntry]]) -> None:
    """A store adds what each entry changes, counts and emptied cells included, and never sums up again."""
    digest, before = 0, stock.Stock().on_hand
    for number in range(len(history)):
        after = stock.oracle(history[: number + 1]).on_hand
        for cell, old, new in stock.differences(before.items(), after.items()):
            digest = proof.add(digest, proof.digest_change(cell, new - old))
        before = after
    assert digest == proof.stock_digest(before.items())
    with_zeros = [*before.items(), (Cell("Z", "nothing", ""), 0)]
    assert StockDigest.of(with_zeros, HERE) == StockDigest.make(HERE, digest, len(before))


@given(stocks, cells, st.integers(0, 60), st.sampled_from([-3, -1, 1, 5]))
def test_no_difference_is_too_round_to_be_seen(held: Held, cell: Cell, power: int, factor: int) -> None:
    """Modulo 2**64 a difference of 2**40 would be seen in 24 bits only."""
    changed = held | {cell: held.get(cell, 0) + factor * 2**power}
    assert proof.stock_digest(changed.items()) != proof.stock_digest(held.items())


def test_names_run_together_are_other_cells() -> None:
    """Else goods could move from A/BC to AB/C unseen; and a log is not a cell."""
    alike = [Cell("A", "BC", ""), Cell("AB", "C", ""), Cell("A", "B", "C"), Cell("A", "1:B", "C"), Cell("A1:B", "", "")]
    assert len({proof.cell_hash(*cell) for cell in alike}) == len(alike)
    assert proof.log_hash("A", "B") != proof.cell_hash("A", "B", "")


def test_the_hash_is_the_same_for_ever() -> None:
    """Every gateway in the field has this function; a change would make all of them differ from the cloud."""
    assert proof.as_text(proof.cell_hash("A-01", "Schraube M4×20", "L1")) == "d0bb4353b6937f7a"
    assert proof.as_text(proof.log_hash("gw-berlin-1", "01JD6Z5V0GZZZZZZZZZZZZZZZZ")) == "8fd35035c194f2c3"
    assert proof.as_text(proof.stock_digest([(Cell("A", "B", ""), -1)])) == "1412c42f4b51f1b8"


@given(st.dictionaries(st.tuples(names, names), st.integers(1, 1 << 40), max_size=9), st.integers(1, 500))
def test_the_position_follows_the_logs(logs: dict[tuple[str, str], int], more: int) -> None:
    """Entry by entry or frame by frame the position is the same, and another set of entries has another."""
    known = [(*log, seq) for log, seq in logs.items()]
    later = proof.add(proof.log_position(known), proof.position_change("gw-new", EPOCH, more))
    assert later == proof.log_position([*known, ("gw-new", EPOCH, more)]) != proof.log_position(known)


# --- the search -------------------------------------------------------------------------------------------------


@given(stocks, st.data())
def test_the_search_finds_exactly_the_cells_that_differ(theirs: Held, data: st.DataObject) -> None:
    """Whatever was lost, doubled or invented at either end."""
    lost = data.draw(st.sets(st.sampled_from(sorted(theirs)), max_size=20)) if theirs else set()
    ours = {cell: held for cell, held in theirs.items() if cell not in lost}
    ours |= data.draw(st.dictionaries(cells, st.integers(-5, 5), max_size=20))
    link = Link(theirs)
    bisection = link.find(ours)
    assert bisection.differences == list(stock.differences(ours.items(), theirs.items()))
    assert (bisection.complete, bisection.moved) == (True, False)


def test_one_difference_among_ten_thousand_cells_is_cheap() -> None:
    """A gateway on a metered link must not send its stock to learn that one shelf is wrong."""
    theirs = many(10_000)
    cell = Cell("A-03", "sku-100", "")
    link = Link(theirs | {cell: 99})
    bisection = link.find(theirs)
    assert bisection.differences == [(cell, theirs[cell], 99)]
    assert link.cells <= proof.LEAF_CELLS_MAX
    assert bisection.rounds <= 5
    assert sum(link.sizes) < 4096


@pytest.mark.parametrize(("ours", "theirs"), [(3000, 0), (0, 3000), (3000, 2000)])
def test_differences_without_end_are_cut_short(ours: int, theirs: int) -> None:
    """A replaced disk differs everywhere; a hundred cells and the word "more" say that."""
    link = Link(many(theirs))
    bisection = link.find(many(ours))
    assert len(bisection.differences) == proof.DIFFERENCES_MAX
    assert not bisection.complete
    assert link.cells <= 3 * proof.ANSWER_CELLS_MAX


def test_equal_stock_takes_one_question() -> None:
    """Somebody who only wants to be sure is soon done."""
    bisection = Link(many(1000)).find(many(1000))
    assert (bisection.differences, bisection.complete, bisection.rounds) == ([], True, 1)


def test_an_end_that_has_moved_on_stops_the_search() -> None:
    """Stock at another position may differ without a fault."""
    link = Link(many(100), position=proof.add(HERE, proof.position_change("gw-1", EPOCH, 1)))
    bisection = link.find(many(99))
    assert (bisection.moved, bisection.complete, bisection.differences) == (True, False, [])


def test_a_repeated_answer_does_no_harm() -> None:
    """MQTT may deliver twice; an answer to an earlier question must not be taken for one to this."""
    theirs = many(2000)
    bisection = Bisection((theirs | {Cell("A-03", "sku-100", ""): 99}).items(), HERE)
    old: list[DigestAnswer] = []
    while (question := bisection.next_question()) is not None:
        assert bisection.next_question() == question
        old.append(proof.answer(question, theirs.items(), HERE))
        if len(old) > 1:
            bisection.receive(old[-2])
            bisection.next_question()
        bisection.receive(old[-1])
        bisection.receive(old[-1])
    assert [cell.sku for cell, _, _ in bisection.differences] == ["sku-100"]
    assert bisection.complete


# --- bounds and hostility ---------------------------------------------------------------------------------------


def test_what_does_not_fit_is_left_out_and_asked_again() -> None:
    """Sixty-four full leaves are two thousand cells: too much for one answer, and none may be lost for it."""
    theirs = many(1200)
    prefixes = tuple(f"{number:02x}" for number in range(64))
    answer = proof.answer(DigestQuestion(prefixes=prefixes), theirs.items(), HERE)
    assert 0 < len(answer.buckets) < len(prefixes)
    ours = {cell: held + (number % 14 == 0) for number, (cell, held) in enumerate(theirs.items())}
    bisection = Link(theirs).find(ours)
    assert len(bisection.differences) == 86
    assert bisection.complete


def test_the_largest_answer_fits_a_message() -> None:
    """Names of 64 characters of four bytes in eight full leaves, and the children of all other prefixes asked."""
    children = (proof.PREFIXES_MAX - proof.ANSWER_CELLS_MAX // proof.LEAF_CELLS_MAX) * len(proof.FAN_OUT)
    buckets = {proof.as_text(number): ("f" * 16, (1 << 62) - 1) for number in range(children)}
    cells = (("😀" * 64, "😀" * 64, "😀" * 64, -(1 << 63)),) * proof.ANSWER_CELLS_MAX
    answer = DigestAnswer(position=proof.as_text(HERE), buckets=buckets, cells=cells)
    assert len(answer.model_dump_json().encode()) < MESSAGE_BYTES_MAX


hex16 = st.integers(0, (1 << 64) - 1).map(proof.as_text)
prefixes = st.text(proof.FAN_OUT, max_size=3) | st.text(proof.FAN_OUT, max_size=16)
buckets = st.dictionaries(prefixes, st.tuples(hex16 | st.just("0" * 16), st.integers(0, 1 << 61)), max_size=40)
listed = st.lists(st.tuples(names, names, st.just("") | names, INT64), max_size=20)
hostile = st.builds(DigestAnswer, position=st.just(proof.as_text(HERE)), buckets=buckets, cells=listed.map(tuple))


@given(stocks, stocks, st.lists(st.none() | hostile, max_size=2 * proof.ROUNDS_MAX))
def test_a_liar_neither_crashes_nor_holds_the_search_for_ever(
    ours: Held, theirs: Held, lies: list[DigestAnswer | None]
) -> None:
    """Unknown prefixes, cells from elsewhere, wrong counts, in any order between true answers."""
    bisection = Bisection(ours.items(), HERE)
    asked = 0
    while (question := bisection.next_question()) is not None:
        lie = lies[asked % len(lies)] if lies else None
        bisection.receive(lie or proof.answer(question, theirs.items(), HERE))
        asked += 1
        assert asked <= proof.ROUNDS_MAX
    assert len(bisection.differences) <= proof.DIFFERENCES_MAX
    found = [cell for cell, _, _ in bisection.differences]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("told", [{}, {"": ("0" * 16, 1)}, {"ffffffffffffffff": ("0" * 16, 1)}])
def test_who_never_answers_what_was_asked_is_given_up(told: dict[str, tuple[str, int]]) -> None:
    """After the last round the search is over, and says that it is not complete."""
    bisection = Bisection(many(100).items(), HERE)
    asked = 0
    while bisection.next_question() is not None:
        bisection.receive(DigestAnswer(position=proof.as_text(HERE), buckets=told))
        asked += 1
    assert (asked, bisection.complete, bisection.differences) == (proof.ROUNDS_MAX, False, [])


@given(st.lists(prefixes, min_size=1, max_size=proof.PREFIXES_MAX), stocks)
def test_any_question_has_a_valid_answer(asked: list[str], held: Held) -> None:
    """Also one that asks for a prefix and its beginning, twice, down to whole hashes."""
    answer = proof.answer(DigestQuestion(prefixes=tuple(asked)), held.items(), HERE)
    assert DigestAnswer.model_validate_json(answer.model_dump_json()) == answer


@pytest.mark.parametrize(
    "payload",
    [
        '{"prefixes": []}',
        '{"prefixes": ["A"]}',
        '{"prefixes": ["00000000000000000"]}',
        '{"prefixes": ["a\\n"]}',
        '{"prefixes": [1]}',
        json.dumps({"prefixes": ["a"] * 65}),
    ],
)
def test_a_question_is_bounded_and_strict(payload: str) -> None:
    """Neither more prefixes nor longer ones than a hash has digits."""
    with pytest.raises(ValidationError):
        DigestQuestion.model_validate_json(payload)


@pytest.mark.parametrize(
    "part",
    [
        '"buckets": {"x": ["0000000000000000", 1]}',
        '"buckets": {"a": ["0", 1]}',
        '"buckets": {"a": ["0000000000000000", -1]}',
        '"cells": [["A", "B", "", 9223372036854775808]]',
        '"cells": [["A", "B", 1]]',
        '"cells": [["A", "", "", 1]]',
        '"cells": [["A", "B", "\\u0000", 1]]',
        '"cells": ' + json.dumps([["A", "B", "", 1]] * 257),
    ],
)
def test_an_answer_is_bounded_and_strict(part: str) -> None:
    """What is no cell, no digest or too much is refused before it is looked at."""
    with pytest.raises(ValidationError):
        DigestAnswer.model_validate_json(f'{{"position": "0000000000000000", {part}}}')

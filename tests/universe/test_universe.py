"""Whole universes on virtual time: every invariant under every fault, from a seed alone."""

from functools import lru_cache

import pytest

from simulation.mutations import proof
from simulation.mutations.edits import BUGS, BY_NAME, Bug
from simulation.run import run
from simulation.soak import replay, soak
from simulation.universe import Size

SHORT = Size(gateways=3, hours=4.0)
# A bug that makes much work for everybody is found in a short universe.
FOUND_SOON = {"foreign-ack": SHORT}
# The seeds that find the slower ones today, tried first; any other will do as well.
FOUND_BY: dict[str, int] = {
    "cursor-apart": 1,
    "rows-apart": 1,
    "takeover-in-silence": 5,
    "fork-check-removed": 7,
    "window-off-by-one": 3,
    "no-resend": 10,
    "step-back-ignored": 3,
    "foreign-ack": 12,
    "no-retention": 3,
    "digest-not-compared": 7,
    "after-not-checked": 6,
    "repeats-not-taken-out": 7,
    "rejected-still-booked": 7,
    "rejected-passed-on": 7,
    "carried-without-dedupe": 6,
    "sealed-before-time": 2,
    "lost-log-ignored": 6,
    "unlike-log-ignored": 10,
    "dedupe-by-timestamp": 7,
    "own-log-asked-unstaged": 13,
}


@pytest.mark.parametrize("seed", range(6))
def test_every_invariant_holds(seed: int) -> None:
    """A scan that is lost or counted twice under some fault is a broken promise."""
    outcome = run(seed, SHORT)
    assert outcome.problem is None, (seed, outcome.at, outcome.invariant, outcome.problem)
    assert outcome.events > 0


def test_a_seed_replays_its_universe() -> None:
    """A failure that cannot be replayed cannot be mended."""
    first, second = run(7, SHORT), run(7, SHORT)
    assert first.digest == second.digest
    assert run(8, SHORT).digest != first.digest


@pytest.mark.parametrize("name", ["ack-before-commit", "receipt-before-commit", "seen-skipped", "sealed-before-time"])
def test_a_planted_bug_is_noticed_and_removed_again(name: str) -> None:
    """A check that never fails proves nothing; one that stays planted spoils the rest."""
    size = proof.PROOF_SIZE
    found = next(seed for seed in range(8) if proof.live(seed, size, BY_NAME[name]).problem is not None)
    assert proof.live(found, SHORT).problem is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", [30, 46, 57, 1023, 1111, 1146, 2205])
def test_what_once_failed_holds(seed: int) -> None:
    """A seed is cheap to keep: docs/simulation.md says what each of these found."""
    outcome = run(seed, proof.PROOF_SIZE)
    assert outcome.problem is None, (outcome.at, outcome.invariant, outcome.problem)


@pytest.mark.slow
def test_the_faults_happen() -> None:
    """A simulator whose disasters never strike proves nothing about them."""
    total = soak(17, 10, proof.PROOF_SIZE, processes=1)
    assert total.failed == []
    assert total.epochs > 10
    assert total.repeated > 0
    assert 0 < total.excused < total.scans / 200, "only what was on a destroyed disk alone may be missing"
    assert replay(7, proof.PROOF_SIZE).startswith("stocktide sim universe --seed 7 --gateways 3 --hours 12 ")


@lru_cache
def holds_without(seed: int, size: Size) -> bool:
    """Whether a seed finds nothing when nothing is planted."""
    return proof.live(seed, size).problem is None


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_found(bug: Bug) -> None:
    """The simulator must find every planted bug."""
    seed, size = FOUND_BY.get(bug.name, 0), FOUND_SOON.get(bug.name, proof.PROOF_SIZE)
    assert holds_without(seed, size), "this seed fails without the bug: it proves nothing"
    stated = proof.live(seed, size, bug)
    assert stated.problem is not None or proof.detect(bug).seeds is not None

"""Proof of the simulator: it finds every planted bug within a stated number of seeds, and nothing without one.

Invariant: a bug that is not found is reported as not found.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Final

from simulation.mutations.edits import BUGS, BY_NAME, FINDINGS, Bug, planted
from simulation.run import Outcome, run
from simulation.universe import Size

SEEDS_MAX: Final = 64
PROOF_SIZE: Final = Size(gateways=3, hours=12.0)


@dataclass(frozen=True, slots=True)
class Detection:
    """One bug and how it was found; `seeds` is how many it took, None when that many were not enough."""

    bug: str
    what: str
    finding: bool
    seeds: int | None
    invariant: str | None
    at: str | None


def live(seed: int, size: Size, bug: Bug | None = None, echo: Callable[[str], None] | None = None) -> Outcome:
    """Live through one universe, with a bug planted or without."""
    with planted(bug):
        return run(seed, size, echo)


def clean(seeds_max: int = SEEDS_MAX) -> Outcome | None:
    """The first of the seeds that finds something although nothing is planted; None when all is well."""
    outcomes = (live(seed, PROOF_SIZE) for seed in range(seeds_max))
    return next((outcome for outcome in outcomes if outcome.problem is not None), None)


def detect(bug: Bug, seeds_max: int = SEEDS_MAX) -> Detection:
    """Try seeds until a bug is found."""
    finding = bug in FINDINGS
    for seed in range(seeds_max):
        outcome = live(seed, PROOF_SIZE, bug)
        # A seed that fails without the bug proves nothing about it.
        if outcome.problem is not None and live(seed, PROOF_SIZE).problem is None:
            return Detection(bug.name, bug.what, finding, seed + 1, outcome.invariant, outcome.at)
    return Detection(bug.name, bug.what, finding, None, None, None)


def detect_all(processes: int, seeds_max: int = SEEDS_MAX) -> list[Detection]:
    """Try every planted bug, then everything the simulator steps around."""
    names = [bug.name for bug in (*BUGS, *FINDINGS)]
    with get_context("spawn").Pool(processes) as pool:
        return pool.map(partial(_detect_by_name, seeds_max=seeds_max), names, chunksize=1)


def many(seeds: Iterable[int], size: Size, processes: int) -> Iterator[Outcome]:
    """Live through universes on several cores, and give each as it is done."""
    waiting = iter(seeds)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_ignore_interrupts) as pool:
        under_way = {pool.submit(live, seed, size) for seed in islice(waiting, 2 * processes)}
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            under_way |= {pool.submit(live, seed, size) for seed in islice(waiting, len(done))}
            for future in done:
                yield future.result()


def _ignore_interrupts() -> None:
    """Ctrl-C is for the process that reports."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _detect_by_name(name: str, seeds_max: int) -> Detection:
    return detect(BY_NAME[name], seeds_max)

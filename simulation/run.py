"""One run of a universe, from its seed to what became of it."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from unittest.mock import patch

import structlog

from edge_agent.ledger import recovery
from simulation.chaos import Chaos
from simulation.checks import Violation
from simulation.steps import HOUR_MS, START_MS, STEPS_MAX, Endless, clock_face
from simulation.universe import Size, Universe

SILENT: Final = logging.CRITICAL  # nothing logs at this level


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one universe; `problem` is None when every invariant held.

    `epochs` were opened, `repeated` entries were taken out by the cloud because another log has them, and `excused`
    happenings were lost with a destroyed disk that had not shipped them.
    """

    seed: int
    hours: float
    events: int
    steps: int
    messages: int
    commits: int
    epochs: int
    repeated: int
    excused: int
    seconds: float
    digest: str
    invariant: str | None = None
    problem: str | None = None
    at: str | None = None
    trace: tuple[str, ...] = ()


@contextmanager
def _without_logs() -> Iterator[None]:
    """What production logs is in the trace, in the words of the simulator."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(SILENT))
    try:
        yield
    finally:
        structlog.configure(**before)


def run(seed: int, size: Size, echo: Callable[[str], None] | None = None) -> Outcome:
    """Live through one universe and report."""
    began = time.process_time()  # for the figure of speed alone
    universe = Universe(seed, size, Chaos, echo)
    problem: Violation | None = None
    try:
        # The one source of chance in production that cannot be given as an argument.
        with _without_logs(), patch.object(recovery, "new_epoch", lambda _: universe.epoch()):
            universe.live()
    except Violation as violation:
        problem = violation
    except Endless:
        problem = Violation("I6 bounds", f"no end after {STEPS_MAX:,} steps")
    except Exception as error:  # noqa: BLE001 - whatever production raises here, it must not
        problem = Violation("own assertion", f"{type(error).__name__}: {error}")
    finally:
        universe.close()
    schedule, elapsed_ms = universe.world.schedule, universe.world.now_ms - START_MS
    return Outcome(
        seed=seed,
        hours=elapsed_ms / HOUR_MS,
        events=len(universe.checks.said),
        steps=schedule.steps_done,
        messages=universe.network.carried,
        commits=universe.checks.commits,
        epochs=universe.checks.epochs,
        repeated=universe.checks.repeated,
        excused=len(universe.checks.excused.keys() - universe.store.places.keys()),
        seconds=time.process_time() - began,
        digest=universe.world.trace.digest,
        invariant=problem.invariant if problem else None,
        problem=problem.detail if problem else None,
        at=clock_face(elapsed_ms).strip() if problem else None,
        trace=tuple(universe.world.trace.lines) if problem else (),
    )

"""`stocktide sim universe --soak`: one universe after another on all cores, for as long as you like.

Invariant: a failing seed is printed with how to replay it, and does not end the soak.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import typer

from simulation.mutations import proof
from simulation.run import Outcome
from simulation.universe import Size

SHOWN_EVERY_S: Final = 10.0


@dataclass(slots=True)
class Total:
    """What was lived through so far."""

    universes: int = 0
    hours: float = 0.0
    scans: int = 0
    epochs: int = 0
    repeated: int = 0
    excused: int = 0
    failed: list[int] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.universes += 1
        self.hours += outcome.hours
        self.scans += outcome.events
        self.epochs += outcome.epochs
        self.repeated += outcome.repeated
        self.excused += outcome.excused
        if outcome.problem is not None:
            self.failed.append(outcome.seed)

    def line(self) -> str:
        """Progress, for people."""
        minutes = (time.monotonic() - self._began) / 60
        failed = f"failed: {', '.join(map(str, sorted(self.failed)))}" if self.failed else "every invariant held"
        return (
            f"{self.universes:,} universes, {self.hours:,.0f} simulated hours ({self.hours / minutes:,.0f} a minute), "
            f"{self.scans:,} scans, {self.epochs:,} new epochs, {self.repeated:,} repetitions taken out, "
            f"{self.excused:,} excused; {failed}"
        )


def soak(first: int, seeds: int | None, size: Size, processes: int) -> Total:
    """Live through all seeds from the first, or through so many, until somebody interrupts."""
    total, shown = Total(), time.monotonic()
    numbers: Iterator[int] = itertools.count(first)
    if seeds is not None:
        numbers = itertools.islice(numbers, seeds)
    try:
        for outcome in proof.many(numbers, size, processes):
            total.add(outcome)
            if outcome.problem is not None:
                typer.echo(f"\nseed {outcome.seed}, {outcome.at}: {outcome.invariant}: {outcome.problem}", err=True)
                typer.echo(f"replay: {replay(outcome.seed, size)}\n", err=True)
            if time.monotonic() - shown >= SHOWN_EVERY_S:
                shown = time.monotonic()
                typer.echo(total.line())
    except KeyboardInterrupt:
        typer.echo("interrupted")
    return total


def replay(seed: int, size: Size) -> str:
    """The command that lives through a universe again and shows every line."""
    return (
        f"stocktide sim universe --seed {seed} --gateways {size.gateways} --hours {size.hours:g} "
        f"--events-per-hour {size.events_per_hour:g} --trace"
    )

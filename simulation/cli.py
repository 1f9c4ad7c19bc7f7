"""`stocktide sim universe`: live through one seed, or prove that the simulator finds every planted bug."""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from command_line.output import FAILED, USAGE, emit_json, facts, fail, listing

if TYPE_CHECKING:
    from simulation.mutations.proof import Detection
    from simulation.run import Outcome

TRACE_LINES_SHOWN = 25
PROCESSES = os.cpu_count() or 1


def universe(
    seed: Annotated[int, typer.Option("--seed", min=0, help="The seed; the first of several with --seeds.")] = 0,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="How many seeds, one after another.")] = None,
    gateways: Annotated[int, typer.Option("--gateways", "-g", min=1, max=50, help="Gateways, two to a site.")] = 3,
    hours: Annotated[float, typer.Option("--hours", min=0.1, help="Simulated hours of storm.")] = 24.0,
    events_per_hour: Annotated[float, typer.Option("--events-per-hour", min=0.1, help="Scans of a gateway.")] = 12.0,
    plant: Annotated[str | None, typer.Option("--plant", metavar="BUG", help="Plant a bug, by name.")] = None,
    prove_detection: Annotated[bool, typer.Option("--prove-detection", help="Look for every planted bug.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Print every line of the trace.")] = False,
    soak: Annotated[
        bool, typer.Option("--soak", help="All seeds from the first, or --seeds of them, on all cores.")
    ] = False,
    processes: Annotated[int, typer.Option("--processes", min=1, help="For --soak and --prove-detection.")] = PROCESSES,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """A whole Stocktide on virtual time under every fault; the seed alone replays it."""
    from simulation import soak as soaking
    from simulation.mutations import edits, proof
    from simulation.universe import Size

    if prove_detection:
        _show_detections(proof.detect_all(processes), json_=json_)
        return
    if plant is not None and plant not in edits.BY_NAME:
        fail(f"There is no bug {plant}.", f"One of: {', '.join(edits.BY_NAME)}", USAGE)
    bug = edits.BY_NAME[plant] if plant else None
    size = Size(gateways=gateways, hours=hours, events_per_hour=events_per_hour)
    if soak:
        total = soaking.soak(seed, seeds, size, processes)
        typer.echo(total.line())
        if total.failed:
            raise typer.Exit(FAILED)
        return
    echo = typer.echo if trace else None
    done: list[Outcome] = []
    for number in range(seed, seed + (seeds or 1)):
        done.append(proof.live(number, size, bug, echo))
        if done[-1].problem is not None:
            break
    _show(done, json_=json_)


def _show(done: "list[Outcome]", *, json_: bool) -> None:
    last, seconds = done[-1], sum(outcome.seconds for outcome in done)
    hours = sum(outcome.hours for outcome in done)
    if json_:
        emit_json([asdict(outcome) for outcome in done])
    else:
        facts(
            [
                ("seeds", f"{done[0].seed} to {last.seed}" if len(done) > 1 else last.seed),
                ("simulated", f"{hours:,.1f} hours, {hours / seconds * 60:,.0f} a minute"),
                ("scans", f"{sum(outcome.events for outcome in done):,}"),
                ("steps", f"{sum(outcome.steps for outcome in done):,}"),
                ("messages", f"{sum(outcome.messages for outcome in done):,}"),
                ("cloud commits", f"{sum(outcome.commits for outcome in done):,}"),
                ("new epochs", f"{sum(outcome.epochs for outcome in done):,}"),
                ("taken out", f"{sum(outcome.repeated for outcome in done):,} repetitions"),
                ("excused", f"{sum(outcome.excused for outcome in done):,} entries of destroyed disks"),
                ("trace", last.digest),
            ]
        )
        if last.problem is None:
            typer.echo("every invariant held")
    if last.problem is not None:
        _show_problem(last)
        raise typer.Exit(FAILED)


def _show_problem(outcome: "Outcome") -> None:
    for line in outcome.trace[-TRACE_LINES_SHOWN:]:
        typer.echo(line, err=True)
    typer.echo(f"\nerror: seed {outcome.seed}, {outcome.at}: {outcome.invariant}: {outcome.problem}", err=True)
    typer.echo("hint:  the same command with --trace shows every line", err=True)


def _show_detections(detections: "list[Detection]", *, json_: bool) -> None:
    """One row for each bug; not found is said, not left out."""
    rows = [asdict(detection) for detection in detections]
    if not json_:
        rows = [row | {"seeds": row["seeds"] or "not found"} for row in rows]
    listing(rows, ("bug", "what", "seeds", "invariant", "at"), json_=json_, numbers=("seeds",), empty="no bugs")

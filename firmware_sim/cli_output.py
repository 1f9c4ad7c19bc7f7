"""How the simulator's CLI speaks: calm tables for people, JSON for machines, one line and a hint for errors.

Exit codes: 0 done, 1 it failed or something is missing, 2 the command cannot be carried out as given.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from firmware_sim.errors import BadInput, SimError
from wire_protocol.errors import WireError

if TYPE_CHECKING:
    from firmware_sim.fleet import Report

FAILED: Final = 1
USAGE: Final = 2
PIPED_WIDTH_CHARS: Final = 240
COLUMNS: Final = ("gateway", "device", "events", "readings", "receipts", "refused", "resent", "waiting")


class SimGroup(TyperGroup):
    """A command group that turns our errors into a line, a hint and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (SimError, WireError) as error:
            fail(error)
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)
            raise typer.Exit(130) from None


def fail(error: SimError | WireError) -> NoReturn:
    """Report an error and exit."""
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": str(error), "hint": error.hint}), err=True)
    else:
        typer.echo(f"error: {error}", err=True)
        if error.hint:
            typer.echo(f"hint:  {error.hint}", err=True)
    raise typer.Exit(USAGE if isinstance(error, BadInput | WireError) else FAILED)


def emit_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def number(count: int, what: str) -> str:
    """`1 site`, `2 sites`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[str] = ()) -> None:
    """A table on standard output; `numbers` names the columns to align right."""
    from rich import box  # noqa: PLC0415 - only commands that print a table pay for it
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*("" if cell is None else str(cell) for cell in row))
    # What people type into SKUs must not be taken for markup; a pipe has no width to fit into.
    width = None if sys.stdout.isatty() else PIPED_WIDTH_CHARS
    Console(markup=False, highlight=False, emoji=False, width=width).print(grid)


def emit_report(report: "Report", *, as_json: bool, extra: dict[str, Any] | None = None) -> None:
    """How a run ended; exits with 1 when something has no receipt."""
    if as_json:
        emit_json(_report_json(report) | (extra or {}))
    else:
        _print_report(report)
    if not report.is_complete:
        raise typer.Exit(FAILED)


def _report_json(report: "Report") -> dict[str, Any]:
    shot = report.snapshot
    return {
        "complete": report.is_complete,
        "seconds": round(report.seconds, 3),
        "events": shot.events,
        "readings": shot.readings,
        "receipts": shot.receipts,
        "refused": shot.refused,
        "resent": shot.resent,
        "digest": shot.digest,
        "devices": [{name: getattr(device, name) for name in _FIELDS} for device in shot.devices],
        "missing": [
            {"gateway": item.gateway, "device": item.device, "events": item.events, "ids": item.ids,
             "problem": item.problem}
            for item in report.missing
        ],
    }  # fmt: skip


_FIELDS: Final = (*COLUMNS, "sent", "repeated", "readings_dropped", "memory_full", "reboots", "refusal", "problem")


def _print_report(report: "Report") -> None:
    shot = report.snapshot
    rows = [[getattr(device, name) for name in COLUMNS] for device in shot.devices]
    table(COLUMNS, rows, numbers=COLUMNS[2:])
    what = f"{number(shot.events, 'event')} and {number(shot.readings, 'reading')} in {report.seconds:.1f} s"
    typer.echo(f"\n{what}: {shot.receipts} committed, {shot.refused} refused")
    typer.echo(f"digest {shot.digest[:16]}")
    full = sum(device.memory_full for device in shot.devices)
    if full:
        typer.echo(f"memory full {number(full, 'time')}: the devices stopped scanning until receipts made room")
    _print_refusals(report)
    for item in report.missing:
        why = f": {item.problem}" if item.problem else ""
        typer.echo(f"missing: {item.gateway}/{item.device} has no receipt for {item.events}, {item.ids[0]} …{why}")
    if report.missing:
        typer.echo("hint:  is the gateway's agent running? stocktide edge status", err=True)


def _print_refusals(report: "Report") -> None:
    reasons: dict[str, str] = {}
    for device in report.snapshot.devices:
        if device.refusal is not None:
            reasons.setdefault(device.refusal.replace(device.device, "NAME"), f"{device.gateway}/{device.device}")
    for reason, where in reasons.items():
        typer.echo(f"refused: {reason} ({where})")
    if any("not registered" in reason for reason in reasons):
        typer.echo("hint:  at the gateway: stocktide edge device add NAME")

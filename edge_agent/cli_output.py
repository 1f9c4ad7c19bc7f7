"""How the edge CLI speaks: calm tables for people, JSON for machines, one line and a hint for errors.

Exit codes: 0 done, 1 it failed or something differs, 2 the command cannot be carried out as given.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from edge_agent.errors import BadInput, EdgeError
from wire_protocol.errors import InvalidEntry, InvalidName, WireError

FAILED: Final = 1
USAGE: Final = 2
PIPED_WIDTH_CHARS: Final = 240


class EdgeGroup(TyperGroup):
    """A command group that turns our errors into a line, a hint and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (EdgeError, WireError) as error:
            fail(error)


def fail(error: EdgeError | WireError) -> NoReturn:
    """Report an error and exit."""
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": str(error), "hint": error.hint}), err=True)
    else:
        typer.echo(f"error: {error}", err=True)
        if error.hint:
            typer.echo(f"hint:  {error.hint}", err=True)
    raise typer.Exit(USAGE if isinstance(error, BadInput | InvalidName | InvalidEntry) else FAILED)


def emit_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False))


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


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values, aligned."""
    shown = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        typer.echo(f"{name:<{width}}  {value}")


def local_time(at_ms: int | None) -> str:
    """A time as the technician's wall clock shows it; to the second."""
    if at_ms is None:
        return ""
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")

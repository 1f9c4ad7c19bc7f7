"""How the cloud CLI speaks: calm tables for people, JSON for machines, one line and a hint for errors.

Exit codes: 0 done, 1 it failed, 2 the command cannot be carried out as given.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from wire_protocol.errors import InvalidName, WireError

FAILED: Final = 1
USAGE: Final = 2
PIPED_WIDTH_CHARS: Final = 240


class CloudGroup(TyperGroup):
    """A command group that turns our errors into a line, a hint and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        from pydantic import ValidationError  # noqa: PLC0415 - only commands that run pay for it

        from cloud_ingest.errors import IngestError, InvalidBrokerUrl, InvalidCatalog  # noqa: PLC0415 - as above
        from cloud_store.errors import AlreadyExists, StoreError, UnknownName  # noqa: PLC0415 - as above

        try:
            return super().invoke(ctx)
        except (StoreError, IngestError, WireError) as error:
            usage = isinstance(error, AlreadyExists | UnknownName | InvalidName | InvalidBrokerUrl | InvalidCatalog)
            fail(str(error), error.hint, USAGE if usage else FAILED)
        except ValidationError as error:
            problem = error.errors()[0]
            name = f"STOCKTIDE_{'_'.join(str(part) for part in problem['loc'])}".upper()
            fail(f"{name}: {problem['msg']}", "docs/settings.md lists every setting.", USAGE)


def fail(message: str, hint: str | None, code: int) -> NoReturn:
    """Report an error and exit."""
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": message, "hint": hint}), err=True)
    else:
        typer.echo(f"error: {message}", err=True)
        if hint:
            typer.echo(f"hint:  {hint}", err=True)
    raise typer.Exit(code)


def emit_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=_plain))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[str] = ()) -> None:
    """A table on standard output; `numbers` names the columns to align right."""
    from rich import box  # noqa: PLC0415 - only commands that print a table pay for it
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - as above

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_text(cell) for cell in row))
    # What people type into SKUs must not be taken for markup; a pipe has no width to fit into.
    width = None if sys.stdout.isatty() else PIPED_WIDTH_CHARS
    Console(markup=False, highlight=False, emoji=False, width=width).print(grid)


def listing(
    rows: list[dict[str, Any]], columns: Sequence[str], *, json_: bool, numbers: Sequence[str] = (), empty: str
) -> None:
    """Rows as a table of some columns, or all of them as JSON; a sentence when there is none."""
    if json_:
        emit_json(rows)
    elif rows:
        heads = [column.replace("_", " ") for column in columns]
        right = [column.replace("_", " ") for column in numbers]
        table(heads, ([row[column] for column in columns] for row in rows), numbers=right)
    else:
        typer.echo(empty)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else ""
    if isinstance(cell, datetime):
        return cell.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return str(cell)

"""Calm tables for people, JSON for machines, one line and a hint for errors.

Exit codes: 0 done, 1 it failed or something differs, 2 the command cannot be carried out as given; an error with an
`exit_code` of its own says which of several steps it was.

Invariant: nothing fails after it was done. A command that `writes` ends with 0 once it has written, whatever becomes of
its output: a script must not take a full pipe for a refused booking and book again.
"""

import io
import json
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from command_line.streams import say

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
PIPED_WIDTH_CHARS: Final = 240
FOLD_INDENT: Final = 4
FOLDED_CHARS_MIN: Final = 6
_BETWEEN: Final = "  "  # columns of a table


class ErrorGroup(TyperGroup):
    """A command group that turns a part's errors into a line, a hint and an exit code.

    An error of ours is one with a `hint` attribute; `usage = True` on its class says that the command was given wrong.
    Everything else is a defect and keeps its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("stopped", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as caught:
            error = self.in_our_words(caught)
            if hasattr(error, "hint"):
                usual = USAGE if getattr(error, "usage", False) else FAILED
                fail(str(error), error.hint, getattr(error, "exit_code", usual))
            if problem := _wrong_setting(error):
                fail(problem, "docs/settings.md lists every setting.", USAGE)
            if isinstance(error, OSError) and error.filename is not None:
                fail(f"{error.filename}: {error.strerror}", None, FAILED)
            raise

    def in_our_words(self, error: Exception) -> Exception:
        """An error of a library as the part's own, where the part has words for it."""
        return error


def _wrong_setting(error: Exception) -> str | None:
    """What is wrong with a setting, if that is what pydantic complains about; None otherwise."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError) or not error.title.endswith("Settings"):
        return None
    from pydantic_settings import BaseSettings

    model = next((made for made in BaseSettings.__subclasses__() if made.__name__ == error.title), BaseSettings)
    problem = error.errors(include_url=False, include_input=False)[0]
    name = "_".join(str(part) for part in problem["loc"])
    # A regular expression is no sentence.
    said = "it does not have the form that is asked for" if "pattern" in problem.get("ctx", {}) else problem["msg"]
    return f"{model.model_config.get('env_prefix', '')}{name}: {said}".replace(name, name.upper(), 1)


def fail(message: str, hint: str | None, code: int) -> NoReturn:
    """Report an error on standard error, as JSON when the command was asked for JSON, and exit."""
    if "--json" in sys.argv:
        say(as_json({"error": message, "hint": hint}), err=True)
    else:
        say(f"error: {message}", err=True)
        if hint:
            say(f"hint:  {hint}", err=True)
    raise typer.Exit(code)


def emit_json(value: Any) -> None:
    """One JSON document on standard output."""
    say(as_json(value))


def as_json(value: Any) -> str:
    """One JSON document. A character that the output's encoding lacks is escaped as JSON escapes it."""
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, default=_plain)
    return text


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    numbers: Sequence[str] = (),
    whole: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """A table on standard output.

    Args:
        columns: the heads.
        rows: the cells, as many as there are columns.
        numbers: columns to align right.
        whole: columns that must not be folded on a narrow terminal, beside the numbers.
        optional: columns to leave out when no row has anything in them.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    cells = [[_text(cell) for cell in row] for row in rows]
    shown = [n for n, name in enumerate(columns) if name not in optional or any(row[n] for row in cells)]
    if _too_wide([columns[n] for n in shown], [[row[n] for n in shown] for row in cells], {*numbers, *whole}):
        for row in cells:
            facts((columns[n], row[n] or None) for n in shown)
            say()
        return
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", collapse_padding=True)
    for name in (columns[number] for number in shown):
        right = name in numbers
        grid.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right or name in whole)
    for row in cells:
        grid.add_row(*(row[number] for number in shown))
    # What people type into SKUs must not be taken for markup; a pipe has no width to fit into.
    sheet = _Sheet()
    width = None if sheet.isatty() else PIPED_WIDTH_CHARS
    Console(file=sheet, markup=False, highlight=False, emoji=False, width=width).print(grid)
    say(sheet.getvalue(), end="")


def _too_wide(columns: Sequence[str], cells: Sequence[Sequence[str]], whole: Collection[str]) -> bool:
    """Whether a terminal has no room for a table, which would crush its columns: then each row is a list of facts."""
    if sys.stdout is None or not sys.stdout.isatty():
        return False
    widths = [max(len(text) for text in (name, *(row[n] for row in cells))) for n, name in enumerate(columns)]
    least = (w if name in whole else min(w, FOLDED_CHARS_MIN) for name, w in zip(columns, widths, strict=True))
    return sum(least) + len(_BETWEEN) * (len(columns) - 1) > shutil.get_terminal_size().columns


class _Sheet(io.StringIO):
    """What is drawn for standard output, with what that can show, before it goes there in one piece."""

    def isatty(self) -> bool:
        return sys.stdout is not None and sys.stdout.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # rich only reads it
        return getattr(sys.stdout, "encoding", None) or "utf-8"


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
        say(empty)


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values, aligned; what is None is left out."""
    shown = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        say(_folded(f"{name:<{width}}  ", str(value)))


def _folded(head: str, text: str) -> str:
    """A line that a terminal has room for, or several with an indent; a pipe has no width to fit into."""
    if sys.stdout is None or not sys.stdout.isatty():
        return head + text
    columns = shutil.get_terminal_size().columns
    indent = " " * (len(head) if columns >= 3 * len(head) else FOLD_INDENT)
    return textwrap.fill(
        head + text,
        max(columns, 2 * FOLD_INDENT),
        subsequent_indent=indent,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def local_time(at_ms: int | None) -> str:
    """A Unix time in milliseconds as the reader's wall clock shows it; to the second."""
    return "" if at_ms is None else _clock_face(at) if (at := _moment(at_ms)) is not None else f"{at_ms} ms"


def short_time(at_ms: int) -> str:
    """A time in as little room as it needs: today to the second, other days to the minute."""
    if (moment := _moment(at_ms)) is None:
        return f"{at_ms} ms"
    at = moment.astimezone()
    today = datetime.now(tz=UTC).astimezone().date()
    return at.strftime("%H:%M:%S" if at.date() == today else "%m-%d %H:%M")


def _moment(at_ms: int) -> datetime | None:
    """A time that a calendar has; None for one that it does not: it may come from a damaged file."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, tz=UTC)
    except (ValueError, OverflowError, OSError, TypeError):
        return None


def _clock_face(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else ""
    if isinstance(cell, dict | list):
        return json.dumps(cell, ensure_ascii=False)
    return _clock_face(cell) if isinstance(cell, datetime) else str(cell)

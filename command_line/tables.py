"""Tables that people have made with a table program: read whole, or refused with the line and what to write there.

Comma, semicolon and tab are understood as separators, UTF-8 with and without a byte order mark as encoding, and heads
in capitals and with blanks. Nothing is guessed: an encoding that does not say what it is, is refused.

Invariant: every error names the file and, where there is one, the line.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from command_line.errors import StocktideError

BYTES_MAX: Final = 64 * 1024 * 1024
SEPARATORS: Final = (",", ";", "\t")
_ENCODED: Final = "Save it again as CSV with the encoding UTF-8 (in Excel: CSV UTF-8)."
_WIDE: Final = ("\xff\xfe", "\xfe\xff")
_SHOWN_CHARS_MAX: Final = 40


class InvalidTable(StocktideError, ValueError):
    """A table cannot be used as it is."""

    usage = True


class Row(NamedTuple):
    """One row: where it is in words, and its cells by column; None for an empty one."""

    where: str
    cells: dict[str, str | None]


class Table(NamedTuple):
    """A table that was read: its columns, and its rows."""

    columns: frozenset[str]
    rows: list[Row]


def read(
    file: Path,
    known: Sequence[str],
    *,
    required: Sequence[str],
    key: Sequence[str] = (),
    mend: Callable[[str], str] = str.strip,
) -> Table:
    """Read a table.

    Args:
        file: CSV with a line of heads.
        known: the columns it may have.
        required: those that it must have, and each row a cell in them.
        key: the columns that name a row, else `required`: no two rows are the same there.
        mend: makes of a cell what its author meant.

    Raises:
        InvalidTable: it cannot be used as it is.
    """
    text = _text(file)
    lines = text.splitlines(keepends=True)
    skipped = 1 if lines and re.fullmatch(r"sep=.[\r\n]*", lines[0], re.IGNORECASE) else 0  # Excel writes it
    text = "".join(lines[skipped:]) if skipped else text
    separator = _separator(text, known)
    records = _records(file, text, separator, skipped)
    line, heads = next(records, (0, []))
    if not heads:
        raise InvalidTable(f"{file} is empty.", hint=f"Begin with a line of heads: {','.join(known)}.")
    columns = _columns(f"{file}:{line}", heads, known, required)
    rows, seen = [], dict[tuple[str | None, ...], int]()
    for line, cells in records:
        where = f"{file}:{line}"
        row = _row(where, columns, cells, separator, mend)
        if (empty := next((name for name in required if row.cells.get(name) is None), None)) is not None:
            raise InvalidTable(f"{where}: the column {empty} is empty.", hint=f"Each row has its {empty}.")
        named = tuple(row.cells.get(name) for name in key or required)
        if named in seen:
            what = ", ".join(f"{name} {cell}" for name, cell in zip(key or required, named, strict=True) if cell)
            hint = "Leave one of the two lines out."
            raise InvalidTable(f"{where}: {what} is in line {seen[named]} already.", hint=hint)
        seen[named] = line
        rows.append(row)
    return Table(frozenset(columns) - {""}, rows)


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > BYTES_MAX:
            raise InvalidTable(f"{file} is larger than {BYTES_MAX} bytes.", hint="Import it in parts.")
        data = file.read_bytes()
    except OSError as error:
        raise InvalidTable(f"{file} cannot be read: {error.strerror}.", hint="Name a file that is there.") from None
    if data[:2].decode("latin-1") in _WIDE or b"\0" in data[:4096]:
        raise InvalidTable(f"{file}:1: this is no UTF-8, but UTF-16 or no text at all.", hint=_ENCODED)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"{file}:{line}: the byte 0x{data[error.start]:02X} is no UTF-8"
        raise InvalidTable(f"{what}; the file may be in latin-1 or Windows-1252.", hint=_ENCODED) from None


def _separator(text: str, known: Sequence[str]) -> str:
    """The separator by which the line of heads has most heads that are known."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return max(SEPARATORS, key=lambda each: sum(_head(cell) in known for cell in line.split(each)))


def _records(file: Path, text: str, separator: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """The records that are not empty, with the lines where they begin."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1 + skipped
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = (
                'Put a cell with a quote or a separator between quotes, and write a quote inside it twice: "4"" pipe".'
            )
            raise InvalidTable(f"{file}:{line}: this row is no CSV: {error}.", hint=hint) from None
        if any(cell.strip() for cell in record):
            yield line, record


def _head(cell: str) -> str:
    return re.sub(r"[\s_-]+", "_", cell.strip().strip('"').strip().lower())


def _columns(where: str, heads: Sequence[str], known: Sequence[str], required: Sequence[str]) -> list[str]:
    columns = [_head(cell) for cell in heads]
    hint = f"Known columns: {', '.join(known)}."
    if (missing := next((name for name in required if name not in columns), None)) is not None:
        found = ", ".join(ascii(cell[:_SHOWN_CHARS_MAX]) for cell in heads[: len(known)])
        raise InvalidTable(f"{where}: the column {missing} is missing; there are {found}.", hint=hint)
    if unknown := [cell for cell, name in zip(heads, columns, strict=True) if name and name not in known]:
        shown = ", ".join(ascii(cell[:_SHOWN_CHARS_MAX]) for cell in unknown[: len(known)])
        raise InvalidTable(f"{where}: nobody knows the columns {shown}.", hint=f"Leave them out. {hint}")
    if twice := [name for name in known if columns.count(name) > 1]:
        raise InvalidTable(f"{where}: the column {twice[0]} is there twice.", hint="Leave one of the two out.")
    return columns


def _row(where: str, columns: Sequence[str], cells: Sequence[str], separator: str, mend: Callable[[str], str]) -> Row:
    beyond = [n for n, cell in enumerate(cells) if cell.strip() and (n >= len(columns) or not columns[n])]
    if beyond:
        shown = "tab" if separator == "\t" else separator
        raise InvalidTable(
            f"{where}: cell {beyond[0] + 1} has no column: {cells[beyond[0]][:_SHOWN_CHARS_MAX]!a}.",
            hint=f'The separator is "{shown}"; put text that contains it between quotes: "4{shown} long".',
        )
    named = zip(columns, cells, strict=False)
    return Row(where, {name: mend(cell) or None for name, cell in named if name})

"""Reads published tables as streams and writes recordings, byte for byte the same each time.

Invariant: an output file is whole or absent; it appears under its name when it is finished.
"""

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, TypeAlias

from firmware_sim.errors import BadInput
from firmware_sim.recordings.recording import GZIP_MAGIC, HEADER, BadRow

REASONS_LISTED_MAX: Final = 20
COMPRESSION: Final = 9


@dataclass(frozen=True, slots=True)
class Converted:
    """A row of a recording before it is written; `time` is ISO 8601."""

    time: str
    site: str
    device: str
    sku: str
    quantity: int


Columns: TypeAlias = dict[str, str]
Convert: TypeAlias = Callable[[Columns], Converted]


class RowUnusable(ValueError):
    """A source row has no meaning for stock; the message says why, in words that repeat from row to row."""


@dataclass(slots=True)
class Conversion:
    """What a conversion did: rows written, rows left out by reason, and the first of those."""

    out: Path
    rows: int = 0
    sites: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    first_left_out: list[tuple[str, BadRow]] = field(default_factory=list)


def convert(files: Iterable[Path], out: Path, columns: tuple[str, ...], make: Convert) -> Conversion:
    """Convert files, in the order given, into one recording; gzip when `out` ends in `.gz`.

    Raises:
        BadInput: a file cannot be read, lacks a column, or `out` cannot be written.
    """
    done = Conversion(out)
    partial = out.with_name(out.name + ".part")
    try:
        with _writer(partial, packed=out.suffix == ".gz") as text:
            rows = csv.writer(text, lineterminator="\n")
            rows.writerow(HEADER)
            for file in files:
                for row in _converted(file, columns, make, done):
                    rows.writerow((row.time, row.site, row.device, row.sku, row.quantity))
                    done.rows += 1
                    done.sites[row.site] += 1
        partial.replace(out)
    except OSError as error:
        raise BadInput(f"{error.filename or out}: {error.strerror}.", hint="Check the path.") from None
    finally:
        partial.unlink(missing_ok=True)
    return done


def _converted(file: Path, columns: tuple[str, ...], make: Convert, done: Conversion) -> Iterator[Converted]:
    for line, row in _table(file, columns):
        try:
            yield make(row)
        except ValueError as error:
            done.left_out[str(error)] += 1
            if len(done.first_left_out) < REASONS_LISTED_MAX:
                done.first_left_out.append((file.name, BadRow(line, str(error))))


def _table(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Columns]]:
    with file.open("rb") as raw:
        packed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        raw.seek(0)
        unpacked = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            reader = csv.DictReader(TextIOWrapper(unpacked, "utf-8-sig", newline=""))
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise BadInput(f"{file.name} has no column {missing[0]}.", hint=f"It needs: {', '.join(columns)}")
            for row in reader:
                yield reader.line_num, {column: row[column] or "" for column in columns}
        except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadInput(f"{file.name} is not a table in CSV: {error}.", hint="Fetch it again.") from None


@contextmanager
def _writer(path: Path, *, packed: bool) -> Iterator[TextIOWrapper]:
    with ExitStack() as stack:
        file: Any = stack.enter_context(path.open("wb"))
        if packed:
            # No name and no time in the header, or the bytes would differ from run to run (RFC 1952, section 2.3.1).
            gz = gzip.GzipFile(filename="", mode="wb", compresslevel=COMPRESSION, fileobj=file, mtime=0)
            file = stack.enter_context(gz)
        yield stack.enter_context(TextIOWrapper(file, "utf-8", newline=""))

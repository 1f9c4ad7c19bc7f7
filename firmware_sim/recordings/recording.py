"""Recordings of what happened in real shops: `time,site,device,sku,quantity`, as CSV or CSV.gz, read as a stream.

A quantity above zero was sold, one below zero was returned. Times are ISO 8601; one without an offset is taken as UTC.
Fields have no line breaks, so each line stands for itself and a bad one spoils no other.

Invariant: memory is bounded whatever the file holds, and no row is skipped in silence: a bad one is reported with its
line number, or raises.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from firmware_sim.errors import BadRecording
from wire_protocol import names
from wire_protocol.entries import QUANTITY_MAX
from wire_protocol.errors import InvalidName

HEADER: Final = ("time", "site", "device", "sku", "quantity")
LINE_BYTES_MAX: Final = 1_000
EPOCH_MS_MAX: Final = (1 << 47) - 1
GZIP_MAGIC: Final = b"\x1f\x8b"
_QUANTITY: Final = re.compile(r"[+-]?[0-9]{1,13}")
_SHOWN_CHARS_MAX: Final = 40
NAMES_CACHED_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what was sold (quantity above zero) or returned (below)."""

    line: int
    at_ms: int
    site: str
    device: str
    sku: str
    quantity: int


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def read(
    path: Path,
    *,
    sites: Collection[str] | None = None,
    limit: int | None = None,
    on_bad: Callable[[BadRow], None] | None = None,
) -> Iterator[Row]:
    """Read a recording.

    Args:
        path: the file, CSV or gzip.
        sites: only these sites; None for all.
        limit: rows at most (of these sites).
        on_bad: called for every bad row, whichever site it may belong to.

    Raises:
        BadRecording: it is no recording, or is damaged; without `on_bad`, at the first bad row too.
    """
    left = limit
    for found in _rows(path):
        if left == 0:
            return
        if isinstance(found, BadRow):
            if on_bad is None:
                raise BadRecording(f"{path.name}, {found}.")
            on_bad(found)
        elif sites is None or found.site in sites:
            yield found
            left = None if left is None else left - 1


def _rows(path: Path) -> Iterator[Row | BadRow]:
    parser = _Parser()
    with _opened(path) as file:
        header = _line(file)
        fields = _fields(header.decode("utf-8-sig", errors="replace"))
        if tuple(field.strip() for field in fields) != HEADER:
            found = ",".join(fields)[: 2 * _SHOWN_CHARS_MAX]
            raise BadRecording(f"{path.name} begins with {found!r}, which is not the header of a recording.")
        number = 1
        while line := _line(file):
            number += 1
            if len(line) > LINE_BYTES_MAX:
                yield BadRow(number, f"longer than {LINE_BYTES_MAX} bytes")
                _skip_line(file, line)
            elif line.strip():
                yield parser.row(number, line)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked if it is gzip; what is wrong with it becomes a BadRecording."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            raw.seek(0)
            if not packed:
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked  # type: ignore[misc]  # it reads like any binary file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadRecording(f"{path.name} is damaged: {error}.", hint="Fetch or convert it again.") from None
    except OSError as error:
        raise BadRecording(f"{path} cannot be read: {error.strerror}.", hint="See: stocktide sim list") from None


def _line(file: IO[bytes]) -> bytes:
    """A line with its end; longer than the bound when the line is."""
    return file.readline(LINE_BYTES_MAX + 2)


def _skip_line(file: IO[bytes], begun: bytes) -> None:
    while begun and not begun.endswith(b"\n"):
        begun = _line(file)


def _fields(line: str) -> list[str]:
    text = line.rstrip("\r\n")
    if '"' not in text:
        return text.split(",")
    return next(csv.reader([text], strict=True))


class _Parser:
    """Turns lines into rows; remembers names it has checked, because a shop says the same ones all day."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()
        self._time_text, self._time_ms = "", 0

    def row(self, number: int, line: bytes) -> Row | BadRow:
        try:
            fields = _fields(line.decode())
        except UnicodeDecodeError:
            return BadRow(number, "not UTF-8")
        except csv.Error as error:
            return BadRow(number, f"not CSV: {error}")
        if len(fields) != len(HEADER):
            return BadRow(number, f"{len(fields)} fields instead of {len(HEADER)}")
        time, site, device, sku, quantity = fields
        try:
            self._check(site, device, sku)
            return Row(number, self._at_ms(time), site, device, sku, _quantity(quantity))
        except InvalidName as error:
            return BadRow(number, str(error).rstrip("."))
        except ValueError as error:
            return BadRow(number, str(error))

    def _check(self, site: str, device: str, sku: str) -> None:
        if (site, device) not in self._known:
            names.slug(_bounded(site), "site")
            names.device(_bounded(device))
            self._remember((site, device))
        if ("", sku) not in self._known:
            names.text(_bounded(sku), "SKU")
            self._remember(("", sku))

    def _remember(self, name: tuple[str, str]) -> None:
        if len(self._known) >= NAMES_CACHED_MAX:
            self._known.clear()
        self._known.add(name)

    def _at_ms(self, text: str) -> int:
        if text == self._time_text:
            return self._time_ms
        try:
            at = datetime.fromisoformat(text)
            at_ms = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1_000)
        except (ValueError, OverflowError):
            raise ValueError(f"{text[:_SHOWN_CHARS_MAX]!r} is not an ISO 8601 time") from None
        if not 0 <= at_ms <= EPOCH_MS_MAX:
            raise ValueError(f"the time {text[:_SHOWN_CHARS_MAX]} is not between 1970 and 6429")
        self._time_text, self._time_ms = text, at_ms
        return at_ms


def _quantity(text: str) -> int:
    if not _QUANTITY.fullmatch(text):
        raise ValueError(f"{text[:_SHOWN_CHARS_MAX]!r} is not a whole number")
    quantity = int(text)
    if quantity == 0:
        raise ValueError("a quantity of 0 is neither sold nor returned")
    if abs(quantity) > QUANTITY_MAX:
        raise ValueError(f"the quantity {text} is out of bounds")
    return quantity


def _bounded(text: str) -> str:
    """A name that is too long, cut to just too long, so that the reason given stays readable."""
    return text[: names.TEXT_CHARS_MAX + 1]

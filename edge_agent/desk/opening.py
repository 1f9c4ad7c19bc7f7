"""Opening stock and counts from a table: each row is what was found of an item on a shelf, all of them or none.

A table is imported once: every entry of it names the table's digest, so that a second import, which would undo what was
booked in between, is noticed even on a gateway that was restored from the cloud.

Serial numbers cannot be counted, because a count is of a shelf. Those that the ledger does not have there are booked
in, one piece each against `@adjust`, before the count of their shelf.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from command_line import tables
from command_line.output import local_time
from edge_agent.desk import places, tracking
from edge_agent.errors import BadInput
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.database import Connection
from edge_agent.ledger.drafts import Draft, draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from wire_protocol import clock as hlc_clock
from wire_protocol import names
from wire_protocol.stock import Cell

COLUMNS: Final = ("location", "sku", "quantity", "lot", "serial")
ROWS_MAX: Final = 50_000
PROBLEMS_SHOWN_MAX: Final = 20
SLIPS_LOOKED_MAX: Final = 50
CHUNK_ENTRIES: Final = 1_000
DIGITS_MAX: Final = 18

Progress = Callable[[int], None]


class NotImported(BadInput):
    """The table cannot be imported."""

    hint = "Nothing was booked. Mend these lines and import the whole file again."


class Line(NamedTuple):
    """One row: where it is in words, and what was found."""

    where: str
    cell: Cell
    serial: str | None
    quantity: int


class Change(NamedTuple):
    """One shelf of an item: what the ledger has, what the table says, and how many serials are new there."""

    cell: Cell
    on_hand: int
    counted: int
    serials: int


@dataclass(frozen=True, slots=True)
class Opening:
    """A table of counts: its rows, its digest, what it changes, and what looks like a slip."""

    lines: tuple[Line, ...]
    digest: str
    changes: tuple[Change, ...]
    slips: tuple[str, ...]
    imported_ms: int | None
    entries: int = 0

    @property
    def reference(self) -> str:
        """What its entries are found by."""
        return f"import {self.digest}"


def look(connection: Connection, file: Path, *, untracked: bool = False) -> Opening:
    """Read a table and compare it with the ledger; nothing is booked.

    Raises:
        InvalidTable: it is no table of ours.
        NotImported: rows cannot be used; the message names each line.
    """
    table = tables.read(file, COLUMNS, required=COLUMNS[:3], key=("location", "sku", "lot", "serial"), mend=_mended)
    if len(table.rows) > ROWS_MAX:
        raise NotImported(f"{file} has {len(table.rows)} rows, {ROWS_MAX} are the most.", hint="Import it in parts.")
    lines, problems = [], []
    for row in table.rows:
        try:
            lines.append(_line(connection, row, untracked=untracked))
        except BadInput as error:
            problems.append(f"{row.where}: {error}")
    if problems:
        more = len(problems) - PROBLEMS_SHOWN_MAX
        shown = [*problems[:PROBLEMS_SHOWN_MAX], *([f"and {more} more"] if more > 0 else [])]
        raise NotImported("\n".join([f"{len(problems)} of {len(table.rows)} rows cannot be used:", *shown]))
    said = sorted((*line.cell, line.serial or "", line.quantity) for line in lines)
    digest = hashlib.blake2b(json.dumps(said).encode(), digest_size=8).hexdigest()
    made = Opening(tuple(lines), digest, tuple(_changes(connection, lines)), tuple(_slips(connection, lines)), None)
    row = connection.execute(statement("imported"), {"reference": made.reference}).fetchone()
    return made if row is None else _replaced(made, hlc_clock.wall_ms(row[0]))


def book(
    path: Path,
    file: Path,
    *,
    actor: str | None = None,
    again: bool = False,
    untracked: bool = False,
    progress: Progress = lambda _: None,
) -> Opening:
    """Book a table in one transaction. `again`: although it was imported before; `progress` gets numbers of entries.

    Raises:
        NotImported: as `look`, or it was imported before.
        LedgerMissing, LedgerBusy, LedgerFull: the ledger does not take it.
    """
    with (
        database.in_our_words(),
        Ledger.open(path, SystemClock()) as ledger,
        database.transaction(ledger.connection),
    ):
        made = look(ledger.connection, file, untracked=untracked)
        if made.imported_ms is not None and not again:
            raise NotImported(
                f"{file} was imported already, on {local_time(made.imported_ms)}.",
                hint="A second time would undo what was booked since. If that is what you want, add --again.",
            )
        drafts = list(_drafts(ledger.connection, made, actor))
        for start in range(0, len(drafts), CHUNK_ENTRIES):
            chunk = drafts[start : start + CHUNK_ENTRIES]
            ledger.append(chunk)
            progress(len(chunk))
        return _replaced(made, made.imported_ms, entries=len(drafts))


def _replaced(made: Opening, imported_ms: int | None, entries: int = 0) -> Opening:
    return Opening(made.lines, made.digest, made.changes, made.slips, imported_ms, entries)


def _mended(cell: str) -> str:
    return names.respelt(cell, scanned=True)


def _line(connection: Connection, row: tables.Row, *, untracked: bool) -> Line:
    location, sku, written, lot, serial = (row.cells.get(name) for name in COLUMNS)
    assert location is not None and sku is not None and written is not None  # noqa: S101, PT018 - `required`
    known = tracking.item(connection, sku)
    if not (written.isascii() and written.isdigit() and len(written) <= DIGITS_MAX):
        of = f"{10**known.scale} of them are a {known.unit}" if known is not None and known.scale else "as 24"
        raise BadInput(f"quantity: {written[:40]!a} is no whole number of base units ({of})")
    quantity = int(written)
    made = draft("count", sku, quantity, location=location, lot=lot, serial=serial)  # as the entry will be, or an error
    if serial is not None and quantity == 0:
        raise BadInput(f"serial {serial} has the quantity 0: leave the row out")
    if not untracked:
        tracking.require(known, made)
        if known is not None and known.serial_tracked and serial is None and quantity:
            raise BadInput(f"{sku} is tracked by serial number: give each piece a row with its serial")
    return Line(row.where, Cell(location, sku, lot or ""), serial, quantity)


def _cells(lines: Sequence[Line]) -> dict[Cell, list[Line]]:
    cells: dict[Cell, list[Line]] = defaultdict(list)
    for line in lines:
        cells[line.cell].append(line)
    return cells


def _changes(connection: Connection, lines: Sequence[Line]) -> Iterator[Change]:
    there = tracking.positions(connection) if any(line.serial for line in lines) else {}
    for cell, found in _cells(lines).items():
        row = connection.execute(statement("balance"), cell).fetchone()
        counted = sum(line.quantity for line in found)
        yield Change(cell, row[0] if row else 0, counted, sum(1 for line in found if _is_new(there, line)))


def _is_new(there: tracking.Positions, line: Line) -> bool:
    """Whether a row has a serial that the ledger does not have on its shelf."""
    return line.serial is not None and line.cell.location not in there.get((line.cell.sku, line.serial), {})


def _slips(connection: Connection, lines: Sequence[Line]) -> Iterator[str]:
    """New names that are like known ones, with their lines; where most names are new, nothing can be said of any."""
    fresh: dict[tuple[str, str], str] = {}
    for line in lines:
        for named in places.new_names(connection, draft("count", line.cell.sku, 0, location=line.cell.location)):
            fresh.setdefault(named, line.where)
    if len(fresh) <= SLIPS_LOOKED_MAX:
        for (noun, name), where in fresh.items():
            if (slip := places.slip(connection, noun, name)) is not None:
                yield f"{where}: {slip}"


def _drafts(connection: Connection, made: Opening, actor: str | None) -> Iterator[Draft]:
    there = tracking.positions(connection) if any(line.serial for line in made.lines) else {}
    common = {"actor": None if actor is None else names.respelt(actor, scanned=True), "reference": made.reference}
    for cell, lines in _cells(made.lines).items():
        lot = cell.lot or None
        for line in lines:
            if _is_new(there, line):
                more = {"source": names.ADJUST, "destination": cell.location, "lot": lot, "serial": line.serial}
                yield draft("correct", cell.sku, line.quantity, **more, **common)
        yield draft("count", cell.sku, sum(line.quantity for line in lines), location=cell.location, lot=lot, **common)

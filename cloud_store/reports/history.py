"""Stock in the past, along two clocks: as it truly was at a moment, and as the cloud believed it at a moment.

The first clock is when things happened (an entry's `at`), the second when the cloud learned of them (the frame that
brought the entry was received). A pick on Monday that an offline gateway reports on Wednesday is missing in what was
believed on Tuesday, and is there in what is known today about Tuesday.

Stock at both is the ordinary definition (`wire_protocol.stock`) over the entries that had happened by the one and were
received by the other (`past_stock`). What is kept for it are the ledger, the receipts of frames, and cells' histories.

Invariant: nothing here writes. A question names its tenant, and one page looks at `CELLS_MAX` cells at most.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from psycopg import errors as pg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from cloud_store.base import sql
from cloud_store.base.arrays import Integers
from cloud_store.base.connection import Connection
from cloud_store.base.errors import StoreError, UnknownName
from cloud_store.base.ledger_numbers import CellKey
from cloud_store.reports import paging
from cloud_store.reports.paging import PAGE_ROWS_MAX, RowPage
from cloud_store.reports.past_stock import HeldCell, PastStock
from cloud_store.reports.stock_levels import StockFilter
from wire_protocol.names import ADJUST

CELLS_MAX: Final = 1_000
AHEAD_MAX: Final = timedelta(minutes=5)  # as far as an entry's own time may be ahead of its arrival
_KEY: Final = ("location_id", "item_id", "lot_id")
_SHOWN: Final = ("tenant", "site", "location", "sku", "lot", "on_hand", "unit", "scale", "stub")
_SQL: Final = sql.load("history")


class InvalidAsOf(StoreError, ValueError):
    """A moment is not one that stock can be known at."""

    usage = True


class TooMuchHistory(StoreError):
    """There is too much history to read in time."""


@dataclass(frozen=True, slots=True)
class AsOf:
    """A point on both clocks; None is their end: everything that happened, everything that is known.

    Raises:
        InvalidMoment: a time without a zone.
    """

    at: datetime | None = None
    known_at: datetime | None = None

    def __post_init__(self) -> None:
        for time in (self.at, self.known_at):
            _require_zone(time)

    @classmethod
    def parse(cls, at: str | None, known_at: str | None) -> "AsOf":
        """A moment as a person types it, each time in ISO 8601.

        Raises:
            InvalidMoment: not such a time, or one without a zone.
        """
        return cls(parse_time(at), parse_time(known_at))

    def require_past(self, now: datetime) -> "AsOf":
        """Return the moment; a time up to five minutes ahead passes, since no clock is exact.

        Raises:
            InvalidMoment: later than that.
        """
        for time in (self.at, self.known_at):
            if time is not None and time > now + AHEAD_MAX:
                raise InvalidAsOf(
                    f"{time.isoformat()} is in the future.", hint="Only the past is known; leave the time out for now."
                )
        return self

    def __str__(self) -> str:
        """As a report's head says it."""
        at = "as of the latest entry" if self.at is None else f"as of {self.at.isoformat(' ', 'seconds')}"
        known = "now" if self.known_at is None else f"at {self.known_at.isoformat(' ', 'seconds')}"
        return f"{at}, as known {known}"


def stock(connection: Connection, wanted: StockFilter, as_of: AsOf, *, limit: int, after: str | None = None) -> RowPage:
    """A page of balances as they were, like `reads.stock`; a page may have fewer rows than asked and still a next.

    Raises:
        UnknownName: the filter names no tenant.
        InvalidCursor: `after` is not from such a page.
        TooMuchHistory: the database's limit for one statement was reached.
    """
    if wanted.tenant is None:
        raise UnknownName("Stock in the past is read for one tenant.", hint="Name it with --tenant.")
    key = paging.decode(after, (int, int, int)) or (0, 0, -1)
    try:
        with _one_moment(connection):
            cells = _cells(connection, wanted, as_of, key)
    except pg.QueryCanceled as error:
        raise TooMuchHistory(hint="Narrow the question to a site, a location or a SKU.") from error
    size = min(max(1, limit), PAGE_ROWS_MAX)
    shown = [row for row in cells if row["on_hand"] or wanted.zero]
    rows = shown[:size]
    last = rows[-1] if len(shown) > size else cells[-1] if len(cells) == CELLS_MAX else None
    following = None if last is None else paging.encode([last[name] for name in _KEY])
    return RowPage([{name: row[name] for name in _SHOWN} for row in rows], following)


@contextmanager
def _one_moment(connection: Connection) -> Iterator[None]:
    """A transaction whose statements see the same; a caller's (`admission.as_tenant`) is one already."""
    is_own = connection.info.transaction_status == TransactionStatus.IDLE
    with connection.transaction():
        if is_own:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def _cells(
    connection: Connection, wanted: StockFilter, as_of: AsOf, after: tuple[int, int, int]
) -> list[dict[str, Any]]:
    """The cells of a page with what was in them."""
    parameters = {
        **{name: getattr(wanted, name) for name in ("tenant", "site", "sku", "location", "virtual")},
        "adjust": ADJUST,
        "cells": CELLS_MAX,
        **{f"after_{name}": part for name, part in zip(("location", "item", "lot"), after, strict=True)},
    }
    with connection.cursor(row_factory=dict_row) as cursor:
        # Planned afresh each time: one plan for every filter would read the whole ledger for a single shelf.
        cells = cursor.execute(_SQL["page"], parameters, prepare=False).fetchall()
    columns = {
        "locations": Integers(row["location_id"] for row in cells),
        "items": Integers(row["item_id"] for row in cells),
        "lots": Integers(row["lot_id"] for row in cells),
        "adjusts": [row["adjust"] for row in cells],
    }
    members = [
        (place, HeldCell(CellKey(*cell), virtual, moved, whole))
        for place, *cell, virtual, moved, whole in connection.execute(_SQL["members"], columns, prepare=False)
    ]
    question = PastStock.asked(connection, str(wanted.tenant), wanted.site, as_of.at, as_of.known_at)
    on_hand = question.on_hand(held for _, held in members)
    for row in cells:
        row["on_hand"] = 0
    for place, held in members:
        cells[place]["on_hand"] += -on_hand[held.cell] if cells[place]["adjust"] else on_hand[held.cell]
    return cells


def parse_time(text: str | None) -> datetime | None:
    """A time in ISO 8601 as a person types it, with a zone; None for none.

    Raises:
        InvalidAsOf: it is no such time.
    """
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        hint = "Write it as in ISO 8601: 2026-11-17T18:00:00+01:00, or 2026-11-17T17:00:00Z."
        raise InvalidAsOf(f"{text!r} is not a time.", hint=hint) from None
    _require_zone(found)
    return found


def _require_zone(time: datetime | None) -> None:
    if time is not None and time.utcoffset() is None:
        raise InvalidAsOf(
            f"{time.isoformat()} has no time zone.",
            hint=f"Write {time.isoformat()}Z for UTC, or your own offset: {time.isoformat()}+01:00.",
        )

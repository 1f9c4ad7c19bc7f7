"""Stock in the past, along two clocks: as it truly was at a moment, and as the cloud believed it at a moment.

The first clock is when things happened (an entry's `at`), the second when the cloud learned of them (the frame that
brought the entry was received). A pick on Monday that an offline gateway reports on Wednesday is missing in what was
believed on Tuesday, and is there in what is known today about Tuesday.

Stock at both is the ordinary definition (`wire_protocol.stock`) over the entries that had happened by the one and were
received by the other. Nothing is kept for it but the ledger and the receipt of each frame.

Invariant: nothing here writes. A question names its tenant, and one page looks at `CELLS_MAX` cells at most.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from psycopg import errors as pg
from psycopg.rows import dict_row

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import StoreError, UnknownName
from cloud_store.base.ledger_numbers import HOUR_OF_HLC
from cloud_store.merge.cursors import STREAM_NUMBERS
from cloud_store.reports import paging
from cloud_store.reports.paging import PAGE_ROWS_MAX, RowPage
from cloud_store.reports.stock_levels import StockFilter
from wire_protocol.names import ADJUST

CELLS_MAX: Final = 1_000
AHEAD_MAX: Final = timedelta(minutes=5)  # as far as an entry's own time may be ahead of its arrival
_KEY: Final = ("location_id", "item_id", "lot_id")
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
    parameters = {
        "tenant": wanted.tenant,
        "site": wanted.site,
        "sku": wanted.sku,
        "location": wanted.location,
        "virtual": wanted.virtual,
        "adjust": ADJUST,
        "stream": STREAM_NUMBERS["ledger"],
        "at": as_of.at,
        "known_at": as_of.known_at,
        "cells": CELLS_MAX,
        "hour_of_hlc": HOUR_OF_HLC,
        **{f"after_{name}": part for name, part in zip(("location", "item", "lot"), key, strict=True)},
    }
    with connection.cursor(row_factory=dict_row) as cursor:
        try:
            # Planned afresh each time: one plan for every filter would read the whole ledger for a single shelf.
            cells = cursor.execute(_SQL["stock"], parameters, prepare=False).fetchall()
        except pg.QueryCanceled as error:
            raise TooMuchHistory(hint="Narrow the question to a site, a location or a SKU.") from error
    size = min(max(1, limit), PAGE_ROWS_MAX)
    shown = [row for row in cells if row["on_hand"] or wanted.zero]
    rows = shown[:size]
    last = rows[-1] if len(shown) > size else cells[-1] if len(cells) == CELLS_MAX else None
    following = None if last is None else paging.encode([last[name] for name in _KEY])
    return RowPage([{name: value for name, value in row.items() if name not in _KEY} for row in rows], following)


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

"""Pages by key: a page ends with a cursor, the key of its last row, opaque to its reader.

By key and not by number, so rows that come in meanwhile neither repeat nor hide others.

Invariant: every page is bounded. A cursor comes from outside and may be forged; nothing but its types is believed.
"""

import base64
import json
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg.rows import dict_row

from cloud_store.base.connection import Connection
from cloud_store.base.errors import InvalidCursor

PAGE_ROWS_MAX: Final = 1_000


class RowPage(NamedTuple):
    """Rows, and where the next page begins; None when this is the last."""

    rows: list[dict[str, Any]]
    after: str | None


def rows(connection: Connection, statement: bytes, limit: int, **parameters: Any) -> list[dict[str, Any]]:
    """One row more than the page has: it tells whether there is a next page."""
    with connection.cursor(row_factory=dict_row) as cursor:
        bounded = min(max(1, limit), PAGE_ROWS_MAX) + 1
        return cursor.execute(statement, {**parameters, "limit": bounded}).fetchall()


def cut(
    found: list[dict[str, Any]], limit: int, key: tuple[str, ...], keep: tuple[str, ...] = ()
) -> tuple[list[dict[str, Any]], str | None]:
    """Cut the extra row off, make the cursor, and hide the ids that only it needs."""
    size = min(max(1, limit), PAGE_ROWS_MAX)
    after = encode([found[size - 1][name] for name in key]) if len(found) > size else None
    hidden = [name for name in key if name not in keep]
    for row in found:
        for name in hidden:
            del row[name]
    return found[:size], after


def encode(key: list[Any]) -> str:
    text = json.dumps(key, default=lambda value: value.isoformat(), separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(after: str | None, types: tuple[type, ...]) -> tuple[Any, ...] | None:
    if after is None:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)))
        return tuple(_part(part, wanted) for part, wanted in zip(key, types, strict=True))
    except (ValueError, TypeError):
        raise InvalidCursor("This page cursor is not one of ours.", hint="Begin without one.") from None


def _part(part: Any, wanted: type) -> Any:
    """One part of a key, as the database can take it; the cursor comes from outside and may be forged."""
    if wanted is datetime:
        at = datetime.fromisoformat(part)
        if at.tzinfo is None:
            raise ValueError(part)
        return at
    if type(part) is not wanted:
        raise TypeError(part)
    if (isinstance(part, str) and not part.isprintable()) or (isinstance(part, int) and not 0 <= part < 1 << 63):
        raise ValueError(part)
    return part

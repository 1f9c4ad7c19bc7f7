"""Where the ledger's two streams stand, and entries as they are stored: what is shown of them, without their models.

A technician's command reads and is gone: whatever it imports, its user waits for.
"""

import json
from typing import Any, Final, NamedTuple

from edge_agent.ledger.database import Connection
from edge_agent.ledger.sql import statement
from wire_protocol.topics import Stream

_WAITING: Final[dict[Stream, str]] = {"ledger": "waiting_entries", "readings": "waiting_readings"}


class StreamPosition(NamedTuple):
    """How far a stream is sealed and acknowledged."""

    sealed_frame: int
    sealed_seq: int
    sealed_digest: str
    source_id: int
    acked_frame: int
    acked_seq: int
    acked_ms: int | None
    fork: str | None


def position(connection: Connection, stream: Stream) -> StreamPosition:
    """Where a stream stands."""
    return StreamPosition(*connection.execute(statement("stream"), (stream,)).fetchone())


def waiting(connection: Connection, stream: Stream, source_id: int) -> int:
    """How many entries are not in a frame yet; counting stops at 1,000."""
    count: int = connection.execute(statement(_WAITING[stream]), (source_id,)).fetchone()[0]
    return count


def recorded(body: str) -> dict[str, Any]:
    """An entry's stored body as plain values, for showing and exporting."""
    values: dict[str, Any] = json.loads(body)
    return values

"""Dead letters: what could not be used, with its bytes and the reason.

Invariant: bounded. The same bytes again only raise a counter, payloads are cut, and old rows are trimmed by gateway
first, so neither a resend loop nor a hostile gateway can fill the disk or push the others' letters out.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from psycopg.rows import dict_row

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from cloud_store.base.gateways import Gateway
from cloud_store.merge.arrivals import ArrivedFrame
from cloud_store.merge.plan import PlannedFrame

PAYLOAD_BYTES_MAX: Final = 256 * 1024
ROWS_MAX: Final = 20_000
ROWS_PER_GATEWAY_MAX: Final = 200
BYTES_PER_GATEWAY_MAX: Final = 4 * 1024 * 1024
REASON_CHARS_MAX: Final = 500

_SQL: Final = sql.load("dead_letters")


class LetterKind(StrEnum):
    """What could not be used; `refused` is a frame of a gateway that may send none."""

    FRAME = "frame"
    ENTRY = "entry"
    STATUS = "status"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One thing that could not be used. `identity` is what makes it the same thing when it comes again."""

    kind: LetterKind
    gateway: str | None
    topic: str
    reason: str
    payload: bytes
    tenant_id: int | None = None
    identity: bytes = b""

    def digest(self) -> bytes:
        """What a repetition is recognised by."""
        text = f"{self.kind}\n{self.topic}\n".encode(errors="replace")
        return hashlib.blake2b(text + (self.identity or self.payload), digest_size=32).digest()


def newest(
    connection: Connection, *, limit: int, tenant: str | None = None, gateway: str | None = None
) -> list[dict[str, Any]]:
    """The newest dead letters, without their payloads."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL["newest"], {"limit": limit, "tenant": tenant, "gateway": gateway}).fetchall()


def add(connection: Connection, letters: Sequence[DeadLetter]) -> None:
    """Store dead letters, in digest order so that two workers cannot deadlock."""
    if not letters:
        return
    with connection.cursor() as cursor:
        cursor.executemany(_SQL["add"], [_columns(letter) for letter in sorted(letters, key=DeadLetter.digest)])


def trim(
    connection: Connection,
    *,
    rows_max: int = ROWS_MAX,
    rows_per_gateway_max: int = ROWS_PER_GATEWAY_MAX,
    bytes_per_gateway_max: int = BYTES_PER_GATEWAY_MAX,
) -> int:
    """Delete the oldest beyond the bounds. Returns how many were deleted."""
    bounds = {
        "rows_max": rows_max,
        "rows_per_gateway_max": rows_per_gateway_max,
        "bytes_per_gateway_max": bytes_per_gateway_max,
    }
    return connection.execute(_SQL["trim"], bounds).rowcount


def of_entries(planned: PlannedFrame) -> Iterable[DeadLetter]:
    """The dead letters of a merged frame: each entry that was rejected, or the frame when it could not be read."""
    arrived, rejected = planned.arrived, planned.rejected
    if rejected and rejected[0].row is None:
        yield of_frame(arrived, rejected[0].reason, planned.gateway)
        return
    for bad in rejected:
        place = f"{arrived.gateway}/{arrived.frame.header.epoch}/{arrived.stream}/{bad.seq}"
        yield DeadLetter(
            LetterKind.ENTRY,
            arrived.gateway,
            arrived.topic,
            f"entry {bad.seq}: {bad.reason}",
            _json(bad.row) or arrived.payload,
            tenant_id=planned.gateway.tenant_id,
            identity=place.encode(),
        )


def of_frame(arrived: ArrivedFrame, reason: str, gateway: Gateway | None) -> DeadLetter:
    """The dead letter of a whole frame."""
    kind = LetterKind.FRAME if gateway is not None and gateway.active else LetterKind.REFUSED
    tenant_id = None if gateway is None else gateway.tenant_id
    return DeadLetter(kind, arrived.gateway, arrived.topic, reason, arrived.payload, tenant_id=tenant_id)


def _columns(letter: DeadLetter) -> dict[str, Any]:
    return {
        "digest": letter.digest(),
        "tenant_id": letter.tenant_id,
        "kind": letter.kind,
        "gateway": printable(letter.gateway),
        "topic": printable(letter.topic),
        "reason": printable(letter.reason[:REASON_CHARS_MAX]),
        "payload": letter.payload[:PAYLOAD_BYTES_MAX],
        "payload_bytes": len(letter.payload),
    }


def printable(text: str | None) -> str | None:
    """Text that PostgreSQL takes: without NUL and lone surrogates, which a hostile sender may well put there."""
    return None if text is None else text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def storable(value: Any) -> Any:
    """A JSON value that PostgreSQL takes: printable texts, and null for a number that JSON does not have."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {printable(str(name)): storable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return value


def _json(row: object) -> bytes | None:
    """A row as JSON; None when it cannot be written down: numbers of thousands of digits, absurdly deep nesting."""
    try:
        return json.dumps(row, separators=(",", ":"), default=str).encode()
    except (ValueError, RecursionError):
        return None

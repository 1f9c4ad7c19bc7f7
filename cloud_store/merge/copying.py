"""Binary COPY of a batch's rows into the hypertables, by way of temporary tables.

PostgreSQL refuses COPY into a table under row level security, whatever its policies say, and INSERT … SELECT from a
temporary table costs nothing that could be measured (ADR 13).

The types are stated because binary COPY does not convert: an integer of the wrong width is an error, and a time is the
integer that PostgreSQL stores (see `ledger_rows.postgres_time`).
"""

from collections.abc import Collection, Iterable
from itertools import chain
from typing import Any, Final

from psycopg.types.json import Jsonb

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from cloud_store.merge.cursors import STREAM_NUMBERS
from cloud_store.merge.dictionary import Dictionary
from cloud_store.merge.ledger_rows import LedgerRows, postgres_time
from cloud_store.merge.plan import PlannedFrame

_SQL: Final = sql.load("copying")
MOVEMENT_TYPES: Final = ["int8"] * 6 + ["int4"] * 8 + ["int2"] + ["text"] * 4
_READING: Final = ["int8"] * 3 + ["float8"] + ["int8"] * 2 + ["int4"] * 5
_FRAME: Final = ["int8"] * 3 + ["int4"] * 6 + ["int2", "bool", "bytea", "bytea", "jsonb"]


def prepare(connection: Connection) -> None:
    """Make the temporary tables of a session; a commit empties them."""
    for table in ("movements", "readings", "frames"):
        connection.execute(_SQL[f"stage_{table}"])


def movements(connection: Connection, rows: LedgerRows) -> None:
    """Copy the movements of a batch; it can be done once."""
    if rows.movement_count:
        _copy(connection, "movements", MOVEMENT_TYPES, chain.from_iterable(rows.movements))


def readings(connection: Connection, rows: LedgerRows) -> None:
    """Copy the readings of a batch, one row for each value."""
    if rows.readings:
        _copy(connection, "readings", _READING, rows.readings)


def hours(connection: Connection, rows: LedgerRows) -> None:
    """Write what moved in each hour of each shelf."""
    if len(rows.hours.hours):
        connection.execute(_SQL["add_hours"], rows.hours._asdict())


def frames(connection: Connection, merged: Collection[PlannedFrame], ids: Dictionary) -> None:
    """Copy the audit row of each merged frame."""
    if merged:
        _copy(connection, "frames", _FRAME, [_audit(planned, ids) for planned in merged])


def _audit(planned: PlannedFrame, ids: Dictionary) -> tuple[Any, ...]:
    arrived, gateway = planned.arrived, planned.gateway
    header = arrived.frame.header
    return (
        postgres_time(arrived.received_ms),
        header.frame,
        header.first_seq,
        gateway.tenant_id,
        gateway.gateway_id,
        ids.epochs[gateway.gateway_id][header.epoch],
        header.count,
        len(planned.rejected),
        len(arrived.payload),
        STREAM_NUMBERS[arrived.stream],
        header.replay,
        bytes.fromhex(arrived.frame.digest),
        arrived.payload if arrived.stream == "ledger" else None,
        Jsonb({bad.seq: bad.reason for bad in planned.rejected}) if planned.rejected else None,
    )


def _copy(connection: Connection, table: str, types: list[str], rows: Iterable[tuple[Any, ...]]) -> None:
    with connection.cursor() as cursor, cursor.copy(_SQL[f"copy_{table}"]) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)
    connection.execute(_SQL[f"take_{table}"])

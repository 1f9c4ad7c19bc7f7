"""Arrays of integers as statement parameters, in PostgreSQL's binary form.

A batch passes tens of thousands of integers as columns. psycopg writes lists out as text, element by element; packing
them at once takes a tenth of the time.

Format: dimensions, has-nulls flag, element type, length, lower bound, then each element with its size in bytes
(`array_recv` in PostgreSQL's arrayfuncs.c).
"""

import struct
from typing import Any, Final

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

INT8_OID: Final = 20
INT8_ARRAY_OID: Final = 1016
INT8_BYTES: Final = 8


class Integers(list[int]):
    """A column of integers, none of them NULL; its type in SQL is bigint[]."""


class _IntegersDumper(Dumper):
    format = Format.BINARY
    oid = INT8_ARRAY_OID

    def dump(self, obj: Integers) -> bytes:
        if not obj:
            return struct.pack(">iii", 0, 0, INT8_OID)
        elements = [INT8_BYTES] * (2 * len(obj))
        elements[1::2] = obj
        try:
            return struct.pack(f">iiiii{'iq' * len(obj)}", 1, 0, INT8_OID, len(obj), 1, *elements)
        except struct.error as error:
            # As psycopg says it of a single value: it lies in the rows, not in the server.
            raise psycopg.DataError(f"a number does not fit 64 bits: {error}") from error


def register(connection: psycopg.Connection[Any]) -> None:
    """Let a connection take `Integers` as parameters."""
    connection.adapters.register_dumper(Integers, _IntegersDumper)

"""Stream cursors: how far the cloud has each stream of each gateway.

Invariant: a cursor moves in the transaction that stores the rows, under its row lock. Shard leases spread the work;
this lock is what makes two workers on one gateway safe.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from cloud_store import sql
from cloud_store.arrivals import Gateway, StreamKey
from cloud_store.connection import Connection
from wire_protocol.replication import NO_CURSOR, Cursor
from wire_protocol.topics import Stream

STREAM_NUMBERS: Final[Mapping[Stream, int]] = {"ledger": 1, "readings": 2}
_STREAMS: Final[Mapping[int, Stream]] = {number: stream for stream, number in STREAM_NUMBERS.items()}
_SQL: Final = sql.load("cursor")


def read(connection: Connection, gateways: Mapping[str, Gateway], keys: Iterable[StreamKey]) -> dict[StreamKey, Cursor]:
    """Cursors as they are now, not locked; streams without one are left out."""
    return _fetch(connection, _SQL["read"], gateways, list(keys))


def lock(connection: Connection, gateways: Mapping[str, Gateway], keys: Iterable[StreamKey]) -> dict[StreamKey, Cursor]:
    """Lock the cursors of streams to the end of the transaction, creating the missing ones; all are returned."""
    keys = list(keys)
    cursors = _fetch(connection, _SQL["lock"], gateways, keys)
    if len(cursors) < len(keys):
        connection.execute(_SQL["create_missing"], _columns(gateways, keys))
        cursors = _fetch(connection, _SQL["lock"], gateways, keys)
    return cursors


def advance(connection: Connection, gateways: Mapping[str, Gateway], cursors: Mapping[StreamKey, Cursor]) -> None:
    """Store where streams stand; the caller holds their locks."""
    moved = list(cursors.values())
    columns = {
        **_columns(gateways, list(cursors)),
        "epochs": [cursor.epoch for cursor in moved],
        "frames": [cursor.frame for cursor in moved],
        "seqs": [cursor.seq for cursor in moved],
        "digests": [cursor.digest for cursor in moved],
    }
    connection.execute(_SQL["advance"], columns)


def of_shards(connection: Connection, shards: Iterable[int]) -> dict[StreamKey, Cursor]:
    """The cursors of all active gateways of some shards, both streams each."""
    return _named(connection.execute(_SQL["of_shards"], {"shards": sorted(shards)}))


def of_gateways(connection: Connection, gateways: Iterable[str]) -> dict[StreamKey, Cursor]:
    """The cursors of the active ones among some gateways, both streams each."""
    return _named(connection.execute(_SQL["of_gateways"], {"names": sorted(gateways)}))


def _named(rows: Iterable[tuple[Any, ...]]) -> dict[StreamKey, Cursor]:
    return {StreamKey(name, _STREAMS[stream]): _cursor(*state) for name, stream, *state in rows}


def _fetch(
    connection: Connection, statement: bytes, gateways: Mapping[str, Gateway], keys: list[StreamKey]
) -> dict[StreamKey, Cursor]:
    names = {gateways[key.gateway].gateway_id: key.gateway for key in keys}
    rows = connection.execute(statement, _columns(gateways, keys))
    return {StreamKey(names[number], _STREAMS[stream]): _cursor(*state) for number, stream, *state in rows}


def _columns(gateways: Mapping[str, Gateway], keys: list[StreamKey]) -> dict[str, Any]:
    return {
        "gateways": [gateways[key.gateway].gateway_id for key in keys],
        "streams": [STREAM_NUMBERS[key.stream] for key in keys],
    }


def _cursor(epoch: str | None, frame: int, seq: int, digest: str) -> Cursor:
    return Cursor(epoch, frame, seq, digest) if epoch else NO_CURSOR

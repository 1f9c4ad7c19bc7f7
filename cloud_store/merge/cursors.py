"""Stream cursors: how far the cloud has each log, that is each stream of each gateway in each epoch.

Invariant: a cursor moves in the transaction that stores the rows, under its row lock. Shard leases spread the work;
this lock is what makes two workers on one gateway safe.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from cloud_store.base.gateways import Gateway
from cloud_store.merge.arrivals import LogKey
from wire_protocol.messages import Rejected
from wire_protocol.replication import NO_CURSOR, Cursor
from wire_protocol.topics import Stream

STREAM_NUMBERS: Final[Mapping[Stream, int]] = {"ledger": 1, "readings": 2}
_STREAMS: Final[Mapping[int, Stream]] = {number: stream for stream, number in STREAM_NUMBERS.items()}
_SQL: Final = sql.load("cursors")


def read(connection: Connection, gateways: Iterable[Gateway]) -> dict[LogKey, Cursor]:
    """Where every log of some gateways stands now, not locked."""
    names = {gateway.gateway_id: gateway.name for gateway in gateways}
    return _keyed(connection.execute(_SQL["read"], {"gateways": list(names)}), names)


def share_sites(connection: Connection, sites: Iterable[int]) -> None:
    """Say, to the end of the transaction, that something is merged at these sites; waits while one is rebuilt."""
    connection.execute(_SQL["share_sites"], {"sites": sorted(sites)})


def own_site(connection: Connection, site_id: int) -> None:
    """Keep every merge away from a site to the end of the transaction, logs that are new included."""
    connection.execute(_SQL["own_site"], {"site_id": site_id})


def lock(connection: Connection, gateways: Mapping[str, Gateway], keys: Iterable[LogKey]) -> dict[LogKey, Cursor]:
    """Lock the cursors of logs to the end of the transaction, creating the missing ones; all are returned."""
    keys = list(keys)
    names = {gateways[key.gateway].gateway_id: key.gateway for key in keys}
    columns = _columns(gateways, keys)
    cursors = _keyed(connection.execute(_SQL["lock"], columns), names)
    if len(cursors) < len(keys):
        connection.execute(_SQL["create_missing"], columns)
        cursors = _keyed(connection.execute(_SQL["lock"], columns), names)
    return cursors


def advance(connection: Connection, gateways: Mapping[str, Gateway], cursors: Mapping[LogKey, Cursor]) -> None:
    """Store where logs stand; the caller holds their locks."""
    moved = list(cursors.values())
    columns = {
        **_columns(gateways, list(cursors)),
        "frames": [cursor.frame for cursor in moved],
        "seqs": [cursor.seq for cursor in moved],
        "digests": [cursor.digest for cursor in moved],
    }
    connection.execute(_SQL["advance"], columns)


def of_shards(connection: Connection, shards: Iterable[int]) -> dict[LogKey, Cursor]:
    """The logs of all active gateways of some shards that may still be written."""
    return _named(connection.execute(_SQL["of_shards"], {"shards": sorted(shards)}))


def of_gateways(connection: Connection, announced: Iterable[tuple[str, str]]) -> dict[LogKey, Cursor]:
    """Both streams of the active ones among some gateways: (gateway, the epoch it announced)."""
    gateways, epochs = zip(*sorted(announced), strict=True)
    return _named(connection.execute(_SQL["of_gateways"], {"names": list(gateways), "epochs": list(epochs)}))


def verdicts(connection: Connection, logs: Iterable[LogKey], *, limit: int) -> dict[LogKey, list[Rejected]]:
    """The entries of ledger logs that were rejected, of the latest `limit` frames of each with such entries.

    An acknowledgement with a verdict may be lost; a gateway that makes contact gets it again.
    """
    wanted = sorted({(log.gateway, log.epoch) for log in logs})
    names, epochs = zip(*wanted, strict=True) if wanted else ((), ())
    found: dict[LogKey, list[Rejected]] = {}
    rows = connection.execute(_SQL["verdicts"], {"names": list(names), "epochs": list(epochs), "limit": limit})
    for gateway, epoch, reasons in rows:
        rejected = found.setdefault(LogKey(gateway, "ledger", epoch), [])
        rejected += [Rejected(seq=int(seq), reason=reason) for seq, reason in reasons.items()]
    return found


def merged(connection: Connection, gateways: Iterable[str]) -> dict[LogKey, Cursor]:
    """Every log of some gateways of which something was merged."""
    return _named(connection.execute(_SQL["merged"], {"names": sorted(gateways)}))


def _named(rows: Iterable[tuple[Any, ...]]) -> dict[LogKey, Cursor]:
    return {LogKey(name, _STREAMS[stream], epoch): _cursor(*state) for name, stream, epoch, *state in rows}


def _keyed(rows: Iterable[tuple[Any, ...]], names: Mapping[int, str]) -> dict[LogKey, Cursor]:
    return _named((names[number], *rest) for number, *rest in rows)


def _columns(gateways: Mapping[str, Gateway], keys: list[LogKey]) -> dict[str, Any]:
    return {
        "gateways": [gateways[key.gateway].gateway_id for key in keys],
        "streams": [STREAM_NUMBERS[key.stream] for key in keys],
        "epochs": [key.epoch for key in keys],
    }


def _cursor(frame: int | None, seq: int, digest: str) -> Cursor:
    return Cursor(frame, seq, digest) if frame else NO_CURSOR

"""Contact with gateways: what they say about themselves, and where their streams stand.

Invariant: an unknown or disabled gateway leaves no trace here.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from cloud_store.merge import alarms, cursors, dead_letters
from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.dead_letters import DeadLetter
from wire_protocol.messages import GatewayStatus, Rejected
from wire_protocol.replication import Cursor

BIGINT_MAX: Final = (1 << 63) - 1
VERDICT_FRAMES_MAX: Final = 1_000  # frames whose rejections are sent to a gateway again
_SQL: Final = sql.load("presence")


def record(connection: Connection, statuses: Iterable[tuple[str, GatewayStatus, int]]) -> None:
    """Store the latest status of gateways: (gateway, status, received in milliseconds)."""
    rows = [_columns(*each) for each in sorted(statuses, key=lambda each: each[0])]
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany(_SQL["record"], rows)


class Contacts(NamedTuple):
    """Gateways that made contact, and shards that a worker has just subscribed to.

    Attributes:
        letters: statuses that could not be decoded.
        statuses: the latest status of each gateway, and when it came in, in milliseconds.
        shards: all gateways of these are to be asked.
        arrived: (gateway, epoch) of those that have just connected.
    """

    letters: Sequence[DeadLetter]
    statuses: Mapping[str, tuple[GatewayStatus, int]]
    shards: frozenset[int]
    arrived: frozenset[tuple[str, str]]


class Standing(NamedTuple):
    """Where the logs of gateways that made contact stand, and what was rejected of them."""

    cursors: dict[LogKey, Cursor]
    verdicts: dict[LogKey, list[Rejected]]


def exchange(connection: Connection, contacts: Contacts) -> Standing:
    """Store what gateways have reported of themselves, and read what the worker must send them."""
    dead_letters.add(connection, contacts.letters)
    statuses = contacts.statuses
    record(connection, ((gateway, status, received_ms) for gateway, (status, received_ms) in statuses.items()))
    alarms.take_reports(
        connection,
        {name: status.problems or {} for name, (status, _) in statuses.items() if status.state == "online"},
    )
    found = cursors.of_shards(connection, contacts.shards) if contacts.shards else {}
    if announced := announced_by(contacts):
        found |= to_be_sent(contacts, cursors.of_gateways(connection, announced))
    return Standing(found, cursors.verdicts(connection, found, limit=VERDICT_FRAMES_MAX) if found else {})


def announced_by(contacts: Contacts) -> frozenset[tuple[str, str]]:
    """The gateways, with their epochs, whose cursors are looked at."""
    online = {(gateway, status.epoch) for gateway, (status, _) in contacts.statuses.items() if status.streams}
    return contacts.arrived | online


def to_be_sent(contacts: Contacts, found: Mapping[LogKey, Cursor]) -> dict[LogKey, Cursor]:
    """Of these logs, those of gateways that have just connected, or believe that the cloud has more than it has."""
    return {log: at for log, at in found.items() if log[::2] in contacts.arrived or _is_behind(at, log, contacts)}


def _is_behind(cursor: Cursor, log: LogKey, contacts: Contacts) -> bool:
    """Whether a gateway believes that the cloud has more: it fell back, and its word of that was lost on the way."""
    status, _ = contacts.statuses.get(log.gateway, (None, 0))
    stream = status.streams.get(log.stream) if status is not None and status.epoch == log.epoch else None
    return stream is not None and stream.acked_frame > cursor.frame


def _columns(gateway: str, status: GatewayStatus, received_ms: int) -> dict[str, Any]:
    """The columns of a status, whatever a gateway says: one that cannot be stored would hold up all the others."""
    return {
        "gateway": gateway,
        "state": status.state,
        "epoch": status.epoch,
        "version": dead_letters.printable(status.version),
        "heard_at": datetime.fromtimestamp(received_ms / 1000, UTC),
        "clock_offset_ms": _bigint(status.clock.offset_ms) if status.clock else None,
        "backlog": _bigint(sum(stream.last_seq - stream.acked_seq for stream in status.streams.values())),
        "dead_letters": status.dead_letters,
        "readings_dropped": status.readings_dropped,
        "devices_online": status.devices_online,
    }


def _bigint(number: int | None) -> int | None:
    """A number, or the nearest that the column can hold."""
    return None if number is None else min(max(number, -BIGINT_MAX), BIGINT_MAX)

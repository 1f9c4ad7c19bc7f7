"""Contact with gateways: what they say about themselves, and where their streams stand.

Invariant: an unknown or disabled gateway leaves no trace here.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from cloud_store.base import sql
from cloud_store.base.connection import translated
from cloud_store.base.session import Session
from cloud_store.merge import cursors, dead_letters
from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.dead_letters import DeadLetter
from wire_protocol.messages import GatewayStatus, Rejected
from wire_protocol.replication import Cursor

BIGINT_MAX: Final = (1 << 63) - 1
VERDICT_FRAMES_MAX: Final = 1_000  # frames with rejected entries that a gateway is told again
_SQL: Final = sql.load("presence")


class ContactStore(Session):
    """Records contacts over one connection, which is opened when needed and again after it was lost.

    Not thread-safe: one call at a time. Every method raises DatabaseUnavailable when the database is away.
    """

    def record(self, statuses: Iterable[tuple[str, GatewayStatus, int]]) -> None:
        """Store the latest status of gateways: (gateway, status, received in milliseconds)."""
        rows = [_columns(*heard) for heard in sorted(statuses, key=lambda heard: heard[0])]
        if rows:
            with translated(), self._connected().cursor() as cursor:
                cursor.executemany(_SQL["record"], rows)

    def cursors_of(self, announced: Iterable[tuple[str, str]]) -> dict[LogKey, Cursor]:
        """Both streams of each active one among some gateways: (gateway, the epoch it announced)."""
        with translated():
            return cursors.of_gateways(self._connected(), announced)

    def cursors_in(self, shards: Iterable[int]) -> dict[LogKey, Cursor]:
        """The logs that may still be written of each active gateway of some shards."""
        with translated():
            return cursors.of_shards(self._connected(), shards)

    def verdicts_of(self, logs: Iterable[LogKey]) -> dict[LogKey, list[Rejected]]:
        """What was rejected of some logs; only those of which something was."""
        with translated():
            return cursors.verdicts(self._connected(), logs, limit=VERDICT_FRAMES_MAX)

    def quarantine(self, letters: Sequence[DeadLetter]) -> None:
        """Store what could not even be decoded."""
        with translated():
            dead_letters.add(self._connected(), letters)

    def trim_dead_letters(self) -> int:
        """Keep dead letters within their bounds."""
        with translated():
            return dead_letters.trim(self._connected())


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

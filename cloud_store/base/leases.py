"""A worker's session: its shard leases as session-level advisory locks, and what the database notifies it of.

A dead worker's locks vanish with its session, however it died, and nothing has to expire. Leases only spread the work:
what keeps two workers from merging a frame twice is the row lock on the stream's cursor.

Invariant: the locks live on a session of their own, so that no merge can release or outlast them.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple, Self

from cloud_store.base import sql
from cloud_store.base.connection import Connection, connect, translated

# Two-integer advisory locks: the first says what, the second which.
_CLASSES: Final = {"worker_class": 0x5357_4B52, "shard_class": 0x5353_4844}  # "SWKR", "SSHD"
_SQL: Final = sql.load("leases")


class Survey(NamedTuple):
    """Who holds what now."""

    workers: int
    mine: frozenset[int]
    others: frozenset[int]


class LeaseSession:
    """A worker's session with its leases. `with` it; leaving gives all leases back."""

    def __init__(self, database_url: str, application: str) -> None:
        self._database_url, self._application = database_url, application
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        self._connection = connect(self._database_url, application=self._application, role="stocktide_ingest")
        with translated():
            self._session.execute(_SQL["join"], _CLASSES)
            self._session.execute(_SQL["listen"])
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def survey(self) -> Survey:
        """Count the live workers and list the shards that are taken."""
        with translated():
            rows = self._session.execute(_SQL["survey"], _CLASSES).fetchall()
        shards = [(number, mine) for lock_class, number, mine in rows if lock_class == _CLASSES["shard_class"]]
        return Survey(
            workers=len(rows) - len(shards),
            mine=frozenset(number for number, mine in shards if mine),
            others=frozenset(number for number, mine in shards if not mine),
        )

    def acquire(self, shards: Iterable[int]) -> frozenset[int]:
        """Try to lease shards. Returns those that no other worker has taken first."""
        return self._each("acquire", shards)

    def release(self, shards: Iterable[int]) -> None:
        """Give leases back."""
        self._each("release", shards)

    def notified(self, timeout_s: float) -> bool:
        """Wait until something was written that a gateway should get. Returns whether it was."""
        with translated():
            return any(True for _ in self._session.notifies(timeout=timeout_s, stop_after=1))

    @property
    def _session(self) -> Connection:
        assert self._connection is not None, "use `with`"  # noqa: S101 - a mistake of the programmer
        return self._connection

    def _each(self, statement: str, shards: Iterable[int]) -> frozenset[int]:
        with translated():
            return frozenset(
                shard
                for shard in shards
                if (self._session.execute(_SQL[statement], _CLASSES | {"shard": shard}).fetchone() or (False,))[0]
            )

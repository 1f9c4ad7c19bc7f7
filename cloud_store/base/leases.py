"""A worker's session: its shard leases, and what the database notifies it of.

A lease is a row with the session that holds it. Advisory locks would be simpler, but every login of the database may
take those, a dashboard's as well. A session holds its leases while its backend runs and it was seen lately, so a dead
worker's are free at once, however it died, and a frozen one's after `UNSEEN_S_MAX`. Leases only spread the work: what
keeps two workers from merging a frame twice is the row lock on the stream's cursor.

Invariant: the leases belong to a connection of their own, so that no merge can release or outlast them.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple, Self

from cloud_store.base import sql
from cloud_store.base.connection import Connection, connect, translated
from cloud_store.base.errors import StoreError

UNSEEN_S_MAX: Final = 20.0
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
        self._session_id = 0

    def __enter__(self) -> Self:
        self._connection = connect(self._database_url, application=self._application, role="stocktide_ingest")
        with translated():
            [[self._session_id]] = self._session.execute(_SQL["join"])
            self._session.execute(_SQL["listen"])
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(StoreError), translated():
            self._session.execute(_SQL["leave"], self._mine)
        self._session.close()

    def survey(self) -> Survey:
        """Say that this session lives, count those that do, and list the shards that are taken."""
        with translated():
            rows = self._session.execute(_SQL["survey"], self._mine).fetchall()
        shards = [(shard, session == self._session_id) for session, shard in rows if shard is not None]
        return Survey(
            workers=len({session for session, _ in rows}),
            mine=frozenset(shard for shard, mine in shards if mine),
            others=frozenset(shard for shard, mine in shards if not mine),
        )

    def acquire(self, shards: Iterable[int]) -> frozenset[int]:
        """Try to lease shards. Returns those that no other worker has taken first."""
        with translated():
            rows = self._session.execute(_SQL["acquire"], {**self._mine, "shards": sorted(shards)})
            return frozenset(shard for (shard,) in rows)

    def release(self, shards: Iterable[int]) -> None:
        """Give leases back."""
        if given := sorted(shards):
            with translated():
                self._session.execute(_SQL["release"], {**self._mine, "shards": given})

    def notified(self, timeout_s: float) -> bool:
        """Wait until something was written that a gateway should get. Returns whether it was."""
        with translated():
            return any(True for _ in self._session.notifies(timeout=timeout_s, stop_after=1))

    @property
    def _session(self) -> Connection:
        assert self._connection is not None, "use `with`"  # noqa: S101 - a mistake of the programmer
        return self._connection

    @property
    def _mine(self) -> dict[str, Any]:
        return {"session": self._session_id, "unseen_s": UNSEEN_S_MAX}

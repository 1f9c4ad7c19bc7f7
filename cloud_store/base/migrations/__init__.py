"""Schema migrations: plain SQL files in this directory, applied in order of their names by yoyo.

Expand, then contract: a migration keeps the version that runs beside it working, so old and new workers overlap
during a rollout. A file that has been released is never edited.

Invariant: at most one process migrates a database at a time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import errors as pg
from yoyo import get_backend, read_migrations
from yoyo.exceptions import LockTimeout

from cloud_store.base.connection import translated
from cloud_store.base.errors import StoreError

_DIRECTORY: Final = Path(__file__).parent
# A statement of a migration waits so long for a lock, and so long do others wait behind it, before it is tried again.
LOCK_TIMEOUT_MS: Final = 2_000
ATTEMPTS_MAX: Final = 15
ATTEMPT_DELAY_S: Final = 1.0
# An empty table of which no row is anybody's, so that it says as little as it holds.
_GUARD: Final = """
DO $$
BEGIN
    IF to_regclass('stocktide_migration') IS NULL THEN
        CREATE TABLE stocktide_migration ();
        ALTER TABLE stocktide_migration ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    END IF;
END
$$
"""


def apply(database_url: str) -> list[str]:
    """Bring a database to the current schema; safe to call from several processes at once.

    Returns:
        The names of the migrations applied now, in order; empty when the schema was current.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
        StoreError: a migration failed; the ones before it stay applied.
    """
    with translated(), _alone(database_url), _backend(database_url) as backend:
        # yoyo's own lock is a row that outlives a killed process. The table's lock proves that the holder is gone.
        backend.break_lock()
        waiting = _waiting(backend)
        try:
            with backend.lock():
                _apply_each(backend, waiting)
        except LockTimeout as error:
            raise StoreError(str(error), hint="Another tool is migrating this database.") from error
        return [migration.id for migration in waiting]


def _apply_each(backend: Any, waiting: Any) -> None:
    """Apply in order, each in its transaction; one that a reader's lock holds up is tried again.

    A session that has read a table and does nothing more keeps its lock. What waits behind a waiting migration
    waits for that session too, so the migration gives up soon and comes back.
    """
    for migration in waiting:
        for attempt in range(ATTEMPTS_MAX):
            try:
                backend.apply_migrations(waiting.filter(lambda one, wanted=migration: one.id == wanted.id))
                break
            except pg.LockNotAvailable as error:
                if attempt == ATTEMPTS_MAX - 1:
                    raise StoreError(
                        f"Migration {migration.id} could not lock a table that another session is reading.",
                        hint="SELECT pid, usename, state, query FROM pg_stat_activity WHERE state LIKE 'idle in%'",
                    ) from error
                time.sleep(ATTEMPT_DELAY_S)


def pending(database_url: str) -> list[str]:
    """The names of the migrations a database lacks, in order."""
    with translated(), _backend(database_url) as backend:
        return [migration.id for migration in _waiting(backend)]


def _waiting(backend: Any) -> Any:
    # yoyo would take this module for a migration written in Python.
    files = read_migrations(str(_DIRECTORY)).filter(  # type: ignore[no-untyped-call]
        lambda migration: migration.path.endswith(".sql")
    )
    return backend.to_apply(files)


@contextmanager
def _alone(database_url: str) -> Iterator[None]:
    """Keep other migrations away, by a lock on a table that only those may lock who may migrate."""
    with psycopg.connect(database_url, autocommit=True) as session:
        while True:
            try:
                session.execute(_GUARD)
                break
            except (pg.UniqueViolation, pg.DuplicateTable, pg.DuplicateObject):
                continue  # another migration has made it at this very moment
        with session.transaction():
            session.execute("LOCK TABLE stocktide_migration")
            yield


@contextmanager
def _backend(database_url: str) -> Iterator[Any]:
    _, _, rest = database_url.partition("://")
    # yoyo opens a connection of its own for each migration, so the address must say it.
    rest += f"{'&' if '?' in rest else '?'}options=-c%20lock_timeout%3D{LOCK_TIMEOUT_MS}"
    with get_backend(f"postgresql+psycopg://{rest}") as backend:  # type: ignore[no-untyped-call]
        yield backend

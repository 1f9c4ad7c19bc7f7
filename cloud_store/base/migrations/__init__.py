"""Schema migrations: plain SQL files in this directory, applied in order of their names by yoyo.

Expand, then contract: a migration keeps the version that runs beside it working, so old and new workers overlap
during a rollout. A file that has been released is never edited.

Invariant: at most one process migrates a database at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from yoyo import get_backend, read_migrations
from yoyo.exceptions import LockTimeout

from cloud_store.base.connection import translated
from cloud_store.base.errors import StoreError

_DIRECTORY: Final = Path(__file__).parent
_LOCK_KEY: Final = 0x5354_4944_4D49_4752  # "STIDMIGR"


def apply(database_url: str) -> list[str]:
    """Bring a database to the current schema; safe to call from several processes at once.

    Returns:
        The names of the migrations applied now, in order; empty when the schema was current.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
        StoreError: a migration failed; the ones before it stay applied.
    """
    with translated(), _alone(database_url), _backend(database_url) as backend:
        # yoyo's own lock is a row that outlives a killed process. The advisory lock proves that the holder is gone.
        backend.break_lock()
        waiting = _waiting(backend)
        try:
            with backend.lock():
                backend.apply_migrations(waiting)
        except LockTimeout as error:
            raise StoreError(str(error), hint="Another tool is migrating this database.") from error
        return [migration.id for migration in waiting]


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
    with psycopg.connect(database_url, autocommit=True) as session:
        session.execute("SELECT pg_advisory_lock(%s)", [_LOCK_KEY])
        yield


@contextmanager
def _backend(database_url: str) -> Iterator[Any]:
    _, _, rest = database_url.partition("://")
    with get_backend(f"postgresql+psycopg://{rest}") as backend:  # type: ignore[no-untyped-call]
        yield backend

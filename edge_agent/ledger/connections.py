"""Connections to SQLite files: opened to write, to read, or to read where nothing can be written; errors in our words.

Invariant: what SQLite says reaches a person by `translated`, with a next command that leads out.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from edge_agent.errors import (
    UNREADABLE,
    DiskFailing,
    EdgeError,
    LedgerBusy,
    LedgerCorrupt,
    LedgerFull,
    LedgerReadOnly,
    unreadable,
)

BUSY_TIMEOUT_S: Final = 10.0

Connection = sqlite3.Connection
DatabaseError = sqlite3.Error

_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# SQLITE_ERROR is damage: our statements fit the schema whose version the file states, unless it has lost a table.
_MEANINGS: Final[tuple[tuple[frozenset[int], type[EdgeError], str], ...]] = (
    (frozenset({sqlite3.SQLITE_FULL}), LedgerFull, "The ledger cannot be written"),
    (frozenset({sqlite3.SQLITE_IOERR}), DiskFailing, "The ledger cannot be read or written"),
    (
        frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}),
        LedgerReadOnly,
        "The ledger cannot be opened or written",
    ),
    (
        frozenset(
            {
                sqlite3.SQLITE_CORRUPT,
                sqlite3.SQLITE_NOTADB,
                sqlite3.SQLITE_ERROR,
                sqlite3.SQLITE_MISMATCH,
                sqlite3.SQLITE_TOOBIG,
                sqlite3.SQLITE_FORMAT,
            }
        ),
        LedgerCorrupt,
        "The ledger file is damaged",
    ),
)


class _Still(sqlite3.Connection):
    """A connection that takes no locks: right as long as the files stay as they were when it was opened."""

    of: Path
    were: tuple[object, ...]


def changed(connection: Connection) -> bool:
    """Whether what was read may be half old and half new: a connection without locks, and somebody wrote."""
    return isinstance(connection, _Still) and _look(connection.of) != connection.were


def connect(path: Path, mode: str, factory: type[Connection] = sqlite3.Connection) -> Connection:
    try:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?{mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
            factory=factory,
        )
    except sqlite3.OperationalError as error:
        raise translated(error) from error


def connect_reading(path: Path) -> Connection:
    """Read-only; where SQLite cannot make the index of its log, as on a read-only file system, without it."""
    connection = connect(path, "mode=ro")
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        if code_of(error) not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR}:
            return connection  # the first statement says it again
        connection.close()
        return connect_still(path)
    return connection


def connect_still(path: Path) -> Connection:
    """Read a file that nobody writes to. Where a log is beside it, a copy of both: the file alone would be out of date.

    Raises:
        LedgerBusy: somebody does write to it.
        LedgerReadOnly: there is no room for a copy.
    """
    before = _look(path)
    if not log_of(path).exists() or not log_of(path).stat().st_size:
        still = connect(path, "mode=ro&immutable=1", _Still)
        assert isinstance(still, _Still)  # noqa: S101 - that is what a factory makes
        still.of, still.were = path, before
        return still
    import shutil  # noqa: PLC0415 - rarely needed, and felt in every cold start
    from tempfile import TemporaryDirectory  # noqa: PLC0415

    try:
        with TemporaryDirectory(prefix="stocktide-") as folder:
            copy = Path(shutil.copyfile(path, Path(folder) / path.name))
            shutil.copyfile(log_of(path), log_of(copy))
            connection = connect(copy, "mode=ro")
            with suppress(sqlite3.Error):  # the caller's first statement says it again
                connection.execute("PRAGMA schema_version").fetchone()  # now that all is open, the names may go
    except OSError as error:
        raise LedgerReadOnly(
            f"{path} lies on a file system that cannot be written, and must be copied to be read: {error}.",
            hint="Name a folder with room for it: TMPDIR=/run/user/1000 stocktide edge …",
        ) from error
    if _look(path) != before:
        connection.close()
        raise LedgerBusy("The ledger was written to while it was copied.")
    return connection


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _look(path: Path) -> tuple[object, ...]:
    """What changes when the file or its log is written to."""
    return tuple(
        (found.st_mtime_ns, found.st_size) if place.exists() and (found := place.stat()).st_size else None
        for place in (path, log_of(path))
    )


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """One durable transaction: committed when the block ends well, rolled back otherwise.

    Raises:
        LedgerBusy, LedgerFull, LedgerCorrupt: what SQLite said, in our words.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            raise translated(error) from error
        raise


@contextmanager
def in_our_words() -> Iterator[None]:
    """What goes wrong with a ledger's content inside the block is an error in our words."""
    try:
        yield
    except sqlite3.Error as error:
        raise translated(error) from error
    except UNREADABLE as error:
        raise unreadable(error) from error


def code_of(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code; None for an error that sqlite3 itself has raised."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def translated(error: sqlite3.Error) -> EdgeError:
    """SQLite's error in our words, with what to do next."""
    code = code_of(error)
    if code in _BUSY:
        return LedgerBusy()
    if code == sqlite3.SQLITE_INTERRUPT:
        return EdgeError("It was interrupted; nothing of it was done.", hint="Run the same command again.")
    for codes, made, words in _MEANINGS:
        # An error without a code is Python's: what lies in a column of text is no text.
        if code in codes or (code is None and made is LedgerCorrupt and "decode" in str(error)):
            return made(f"{words}: {error}.")
    return EdgeError(f"The ledger refused a statement: {error}.", hint="This is a defect of the program; report it.")

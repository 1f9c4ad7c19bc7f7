"""The ledger file: created, opened, locked. The only importer of sqlite3 besides the schema.

WAL with `synchronous=FULL`: a commit is on the disk before anything is acknowledged
(https://sqlite.org/pragma.html#pragma_synchronous). Readers open the file read-only and never wait for the writer.

Invariant: only a connection from `open_writer` can write, and it writes inside `transaction` alone.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edge_agent.errors import (
    BadInput,
    EdgeError,
    LedgerBusy,
    LedgerCorrupt,
    LedgerExists,
    LedgerForeign,
    LedgerFull,
    LedgerMissing,
)
from edge_agent.ledger.sql import statement

APPLICATION_ID: Final = 0x53544B54  # "STKT", which tells a ledger from any other SQLite file
BUSY_TIMEOUT_S: Final = 10.0
CACHE_KIB: Final = 16 * 1024

Connection = sqlite3.Connection
DatabaseError = sqlite3.Error


def _connect(path: Path, *, writable: bool) -> Connection:
    mode = "rw" if writable else "ro"
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.OperationalError as error:
        raise translated(error) from error
    return connection


def _tune(connection: Connection) -> Connection:
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def create(path: Path) -> Connection:
    """Create an empty ledger file and return its writer connection.

    Raises:
        LedgerExists: there is a file already.
        BadInput: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o640, exist_ok=False)
    except FileExistsError:
        raise LedgerExists(f"{path} exists already; a ledger is never overwritten.") from None
    except OSError as error:
        raise BadInput(
            f"{path} cannot be created: {error.strerror}.", hint="Name another file with --ledger."
        ) from None
    connection = _connect(path, writable=True)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    return _tune(connection)


def open_writer(path: Path) -> Connection:
    """Open a ledger to write to it, and bring its schema up to date.

    Raises:
        LedgerMissing, LedgerForeign: there is no ledger of ours here.
    """
    from edge_agent.ledger import (  # noqa: PLC0415 - sqlite-utils takes a tenth of a second that readers need not pay
        schema,
    )

    connection = _open_ours(path, writable=True)
    try:
        if not schema.current(connection):
            schema.migrate(connection)
    except sqlite3.Error as error:
        connection.close()
        raise translated(error) from error
    return connection


def open_reader(path: Path) -> Connection:
    """Open a ledger read-only; works while the agent runs, and with a read-only file system.

    Raises:
        LedgerMissing, LedgerForeign: there is no ledger of ours here.
    """
    return _open_ours(path, writable=False)


def _open_ours(path: Path, *, writable: bool) -> Connection:
    """Open the file if it is a ledger.

    The file is asked through SQLite and never opened by other means: closing such a file descriptor would drop this
    process's POSIX locks, and the next process to leave would delete the log under a running agent
    (https://sqlite.org/howtocorrupt.html, section 2.2).
    """
    if not path.exists():
        raise LedgerMissing(f"There is no ledger at {path}.")
    connection = _connect(path, writable=writable)
    try:
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    except sqlite3.Error as error:
        connection.close()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_NOTADB:
            raise LedgerForeign(f"{path} is not a Stocktide ledger.") from None
        raise translated(error) from error
    if application_id != APPLICATION_ID:
        connection.close()
        raise LedgerForeign(f"{path} is not a Stocktide ledger.")
    return _tune(connection)


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


def translated(error: sqlite3.Error) -> EdgeError:
    """SQLite's error in our words, with what to do next."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return LedgerBusy()
    if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
        return LedgerFull(f"The ledger cannot be written: {error}.")
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return LedgerCorrupt(f"The ledger file is damaged: {error}.")
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
        return BadInput(f"The ledger cannot be opened: {error}.", hint="Run as the user who owns the ledger.")
    return EdgeError(f"The ledger refused a statement: {error}.")


def meta(connection: Connection) -> dict[str, str]:
    """The single facts about the ledger: gateway, epoch, addresses."""
    return dict(connection.execute(statement("meta")).fetchall())

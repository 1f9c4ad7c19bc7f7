"""The ledger file: created, opened, brought up to date.

WAL with `synchronous=FULL`: a commit is on the disk before anything is acknowledged
(https://sqlite.org/pragma.html#pragma_synchronous). Readers open the file read-only and never wait for the writer.

Invariant: only a connection from `open_writer` can write, and it writes inside `transaction` alone.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from command_line.version import version as program_version
from edge_agent import files, wal
from edge_agent.errors import (
    BadInput,
    LedgerBusy,
    LedgerExists,
    LedgerForeign,
    LedgerLinked,
    LedgerMissing,
    LedgerNewer,
    LedgerOutdated,
)
from edge_agent.ledger import connections
from edge_agent.ledger.connections import (
    BUSY_TIMEOUT_S,
    Connection,
    DatabaseError,
    in_our_words,
    transaction,
    translated,
)
from edge_agent.ledger.sql import SCHEMA, statement

__all__ = [
    "Connection",
    "DatabaseError",
    "creating",
    "empty_log",
    "exists",
    "in_our_words",
    "log_bytes",
    "meta",
    "open_reader",
    "open_writer",
    "reading",
    "rescue_log",
    "snapshot",
    "transaction",
    "translated",
    "version",
    "writing",
]

APPLICATION_ID: Final = 0x53544B54  # "STKT", which tells a ledger from any other SQLite file
CACHE_KIB: Final = 16 * 1024
WAL_KEPT_BYTES: Final = 8 << 20
"""What the log may keep on the disk once everything of it is in the file, if nothing else bounds it."""

EMPTY_LOG_MS: Final = 200

Progress = Callable[[int], None]


def _tune(connection: Connection) -> Connection:
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
    return connection


@contextmanager
def creating(path: Path) -> Iterator[Connection]:
    """A new ledger file, for the block to fill. It has its name once the block has ended well, and all of it at once.

    Of two processes that make the same ledger one does, and the other is refused. What was left by one that was killed
    is made again.

    Raises:
        LedgerExists: there is a ledger already.
        BadInput: the folder cannot be written.
    """
    from edge_agent.ledger import schema  # noqa: PLC0415 - as in open_writer

    path = files.real(path)
    partial = files.partial_of(path)
    try:
        files.make_folder(path.parent)
        with files.locked(files.lock_path(path), wait_s=BUSY_TIMEOUT_S):
            _require_free(path)
            _remove(partial)
            partial.touch(mode=files.FILE_MODE, exist_ok=False)
            connection = connections.connect(partial, "mode=rw")
            try:
                # Nobody knows the file yet: it is synced as a whole before it gets its name.
                connection.execute("PRAGMA synchronous = OFF")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                schema.migrate(connection)
                yield connection
                connection.execute("PRAGMA journal_mode = WAL")
            except BaseException as error:
                connection.close()
                _remove(partial)
                if isinstance(error, sqlite3.Error):
                    raise translated(error) from error
                raise
            connection.close()
            files.sync(partial)
            partial.replace(path)
            files.sync(path.parent)
    except BlockingIOError:
        raise LedgerBusy(f"Another process is making {path}, or an agent has lost its ledger there.") from None
    except OSError as error:
        raise BadInput(
            f"{path} cannot be created: {error.strerror}.", hint="Name another file with --ledger."
        ) from None


def _require_free(path: Path) -> None:
    """Nothing that was ever booked is in the way."""
    if exists(path):
        raise LedgerExists(f"{path} exists already; a ledger is never overwritten.")
    rest = connections.log_of(path)
    if path.exists():
        _remove(path)  # made by an older version that was killed before it knew whose ledger it would be
    elif rest.exists() and rest.stat().st_size:
        # SQLite would take it for the new file's, and what is in it may be nowhere else.
        raise LedgerExists(f"{rest} belongs to a ledger that is not here.", hint=f"Move it to where {path.name} went.")


def _remove(path: Path) -> None:
    for suffix in files.PARTS:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def exists(path: Path) -> bool:
    """Whether there is a file that is not the leaving of an `init` that was killed, as older versions had it.

    Raises:
        EdgeError: what is there cannot be looked at.
    """
    if not path.exists():
        return False
    if path.is_file() and path.stat().st_size == 0:
        return False
    try:
        connection = _open_ours(path, writable=False)
    except LedgerForeign:
        return True
    try:
        return version(connection) > 0 and "gateway" in meta(connection)
    except sqlite3.Error as error:
        if "no such table" in str(error):
            return False
        raise translated(error) from error
    finally:
        connection.close()


def open_writer(path: Path, progress: Progress = lambda _: None) -> Connection:
    """Open a ledger to write to it, and bring its schema up to date; `progress` gets the version being made.

    Raises:
        LedgerMissing, LedgerForeign, LedgerLinked: there is no ledger of ours here that can be used.
        LedgerNewer: it is of a newer version.
        LedgerOutdated: it is of an older version, and an agent of that version runs on it.
    """
    with _opened(path, writable=True) as connection:
        if _require_known(connection, path) < SCHEMA:
            _migrate(connection, path, progress)
        return connection


@contextmanager
def _opened(path: Path, *, writable: bool) -> Iterator[Connection]:
    """A connection that stays open when the block ends well."""
    connection = _open_ours(path, writable=writable)
    try:
        yield connection
    except sqlite3.Error as error:
        connection.close()
        raise translated(error) from error
    except BaseException:
        connection.close()
        raise


def _migrate(connection: Connection, path: Path, progress: Progress) -> None:
    from edge_agent.ledger import (  # noqa: PLC0415 - sqlite-utils takes a tenth of a second, which is rarely needed
        schema,
    )

    if files.holder(path) not in {None, os.getpid()}:
        raise LedgerOutdated(
            "The agent that runs on this ledger is of an older version than this command.",
            hint="Restart it (systemctl restart stocktide-edge), then run the same command again.",
        )
    schema.migrate(connection, progress)


def log_bytes(path: Path) -> int:
    """How large the ledger's log is on the disk."""
    try:
        return connections.log_of(files.real(path)).stat().st_size
    except FileNotFoundError:
        return 0


def empty_log(path: Path) -> int:
    """Put everything that is in the log into the file, and give its room back; returns how large it is then.

    Writers wait for it, so it gives up at once where a reader is in the way.

    Raises:
        EdgeError: the ledger cannot be written.
    """
    with in_our_words(), closing(open_writer(path)) as connection:
        # First without holding anyone up: then little is left to do while the writer waits.
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        connection.execute(f"PRAGMA busy_timeout = {EMPTY_LOG_MS}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return log_bytes(path)


def version(connection: Connection) -> int:
    """The version of a ledger's schema; 0 before the first."""
    stated: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if stated:
        return stated
    try:  # made before versions were stated
        made: int = connection.execute(statement("migrations_made")).fetchone()[0]
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return 0
    return made


def _require_known(connection: Connection, path: Path) -> int:
    found = version(connection)
    if found > SCHEMA:
        by = meta(connection).get("migrated_by", "a newer version")
        raise LedgerNewer(
            f"{path} has schema {found}, written by stocktide {by}; "
            f"this is stocktide {program_version()}, which knows schemas up to {SCHEMA}."
        )
    return found


def open_reader(path: Path) -> Connection:
    """Open a ledger read-only; works while the agent runs, with a full disk, and with a read-only file system.

    Raises:
        LedgerMissing, LedgerForeign, LedgerLinked: there is no ledger of ours here that can be used.
        LedgerNewer, LedgerOutdated: it is of another version.
    """
    with _opened(path, writable=False) as connection:
        if (found := _require_known(connection, path)) < SCHEMA:
            raise LedgerOutdated(f"{path} has schema {found}; stocktide {program_version()} needs {SCHEMA}.")
        return connection


@contextmanager
def writing(path: Path) -> Iterator[Connection]:
    """One transaction of a person's command; whatever damage is met on the way is an error in our words.

    Raises:
        EdgeError: as `open_writer`, and as `transaction`.
    """
    with in_our_words(), closing(open_writer(path)) as connection, transaction(connection):
        yield connection


@contextmanager
def snapshot(connection: Connection) -> Iterator[None]:
    """Everything that is read inside the block is of one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def reading(path: Path) -> Iterator[Connection]:
    """Read a ledger for a person: whatever damage is met on the way is an error in our words.

    Raises:
        LedgerCorrupt: there is something in the ledger that cannot be understood.
        EdgeError: as `open_reader`.
    """
    with in_our_words():
        connection = open_reader(path)
        try:
            yield connection
            if connections.changed(connection):
                raise LedgerBusy("The ledger was written to while it was read.")
        finally:
            connection.close()


def rescue_log(path: Path) -> Path | None:
    """Before a ledger is opened to write: keep a damaged log, which SQLite would go on from its last good commit with.

    Returns:
        The copy; None when the log is sound.

    Raises:
        DiskFailing: it cannot be copied, so it must not be overwritten.
    """
    path = files.real(path)
    kept = wal.keep(connections.log_of(path))
    if kept is not None:
        with in_our_words(), closing(connections.connect(path, "mode=rw")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # or what lies behind would be found again
    return kept


def _open_ours(path: Path, *, writable: bool) -> Connection:
    """Open the file if it is a ledger.

    The file is asked through SQLite and never opened by other means: closing such a file descriptor would drop this
    process's POSIX locks, and the next process to leave would delete the log under a running agent
    (https://sqlite.org/howtocorrupt.html, section 2.2).
    """
    if not path.exists():
        raise LedgerMissing(f"There is no ledger at {path}.")
    path = files.real(path)
    if (names := path.stat().st_nlink) > 1:
        # Each name would have a log of its own, and each log a part of the truth
        # (https://sqlite.org/howtocorrupt.html, section 2.5).
        raise LedgerLinked(f"{path} has {names} names (hard links); a ledger is used by one name alone.")
    if files.holder(path) is None:  # an agent has looked at it already, and it is written to
        rescue_log(path) if writable else wal.require_sound(connections.log_of(path))
    connection = connections.connect(path, "mode=rw") if writable else connections.connect_reading(path)
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


def meta(connection: Connection) -> dict[str, str]:
    """The single facts about the ledger: gateway, epoch, addresses."""
    return dict(connection.execute(statement("meta")).fetchall())

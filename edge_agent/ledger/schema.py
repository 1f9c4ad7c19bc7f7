"""The ledger's schema, as sqlite-utils migrations.

`entry` and `reading` hold what happened; `stream` and `frame` hold how far it was shipped; everything else about stock
is derived and can be rebuilt.

Invariant: a migration and its record are one transaction that holds the write lock: it was made or it was not, however
the process ended, and of two processes that migrate at once each finds what the other has made. The file says its
version as `PRAGMA user_version`, so that opening it needs no migrations at all.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from command_line.version import version as program_version
from edge_agent.ledger.sql import SCHEMA, script, statement
from wire_protocol.proof import stock_digest
from wire_protocol.stock import Cell

ledger_migrations = Migrations("stocktide.edge")

MIGRATED_BY: Final = "migrated_by"  # the program that wrote the schema, for one that does not know it
TICK_STEPS: Final = 1_000_000  # of SQLite's virtual machine: some ten milliseconds

_COMMENT: Final = re.compile(r"^--.*$", re.MULTILINE)

Progress = Callable[[int], None]
"""Gets the version that is being made, at its beginning and every now and then."""


@ledger_migrations()
def m001_ledger(db: Database) -> None:
    """Entries, derived stock, frames, devices, dead letters."""
    _make(db, "schema_001")


@ledger_migrations()
def m002_logs(db: Database) -> None:
    """Several logs: those of the site's other gateways, and older ones of this gateway."""
    _make(db, "schema_002")


@ledger_migrations()
def m003_stock_digest(db: Database) -> None:
    """The digest of all balances."""
    _make(db, "schema_003")
    rows = db.execute("SELECT location, sku, lot, on_hand FROM balance WHERE on_hand <> 0").fetchall()
    digest = stock_digest((Cell(*row[:3]), row[3]) for row in rows)
    db.execute("UPDATE stock_digest SET digest = ?, cells = ?", [digest, len(rows)])


@ledger_migrations()
def m004_twin(db: Database) -> None:
    """The twin in force."""
    _make(db, "schema_004")


@ledger_migrations()
def m005_firmware(db: Database) -> None:
    """What devices say of their firmware."""
    _make(db, "schema_005")


@ledger_migrations()
def m006_arrival(db: Database) -> None:
    """When messages that could not be used arrived, and which entries were late."""
    _make(db, "schema_006")


def _make(db: Database, name: str) -> None:
    """Run a script inside the migration's transaction.

    Programs before schemas stated their version ran scripts without a transaction: in a file that such a program left
    when it was killed, the first statements are made already.
    """
    for text in script(name):
        if not _is_made(db, text):
            db.execute(text)


def _is_made(db: Database, text: str) -> bool:
    text = _COMMENT.sub("", text).strip()
    if found := re.match(r"CREATE (?:TABLE|TRIGGER) (\w+)", text):
        return _there(db, found[1])
    if found := re.match(r"CREATE INDEX (\w+) ON (\w+)", text):
        return _there(db, found[1], of=found[2])
    if found := re.match(r"ALTER TABLE (\w+) ADD COLUMN (\w+)", text):
        return found[2] in db[found[1]].columns_dict
    if found := re.match(r"ALTER TABLE (\w+) RENAME TO (\w+)", text):
        return _there(db, found[2]) or "log" in db[found[1]].columns_dict
    if found := re.match(r"INSERT OR IGNORE INTO \w+ SELECT .* FROM (\w+)", text):
        return not _there(db, found[1])
    return False


def _there(db: Database, name: str, of: str | None = None) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE name = ? AND tbl_name = coalesce(?, tbl_name)"
    return db.execute(query, [name, of]).fetchone() is not None


def migrate(connection: sqlite3.Connection, progress: Progress = lambda _: None) -> None:
    """Bring a ledger file to the current schema; a no-op when it is there.

    It can be interrupted anywhere and goes on from there the next time; other processes may do the same meanwhile.

    Raises:
        sqlite3.Error: what SQLite says; the migrations before it are made, the one that failed is not.
    """
    db = Database(connection)
    while True:
        with _migration(connection):
            waiting = [migration.name for migration in ledger_migrations.pending(db)]
            made = min(SCHEMA, SCHEMA - len(waiting) + 1)
            if waiting:
                progress(made)
                connection.set_progress_handler(lambda at=made: progress(at), TICK_STEPS)  # type: ignore[misc]
                ledger_migrations.apply(db, stop_before=waiting[1:2])
            connection.execute(statement("set_meta"), (MIGRATED_BY, program_version()))
            connection.execute(f"PRAGMA user_version = {made}")
        if len(waiting) <= 1:
            return


@contextmanager
def _migration(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction with the write lock from its beginning: what is pending is looked at inside it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.set_progress_handler(None, 0)
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    finally:
        connection.set_progress_handler(None, 0)

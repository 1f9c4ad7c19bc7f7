"""The ledger's schema, as sqlite-utils migrations.

`entry` and `reading` hold what happened; `stream` and `frame` hold how far it was shipped; everything else about stock
is derived and can be rebuilt. Migrations only ever add: an older agent must still be able to read the file.
"""

import sqlite3

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from edge_agent.ledger.sql import script
from wire_protocol.proof import stock_digest
from wire_protocol.stock import Cell

ledger_migrations = Migrations("stocktide.edge")


@ledger_migrations(transactional=False)
def m001_ledger(db: Database) -> None:
    """Entries, derived stock, frames, devices, dead letters."""
    for statement in script("schema_001"):
        db.execute(statement)


@ledger_migrations(transactional=False)
def m002_logs(db: Database) -> None:
    """Several logs: those of the site's other gateways, and older ones of this gateway."""
    for statement in script("schema_002"):
        db.execute(statement)


@ledger_migrations(transactional=False)
def m003_stock_digest(db: Database) -> None:
    """The digest of all balances."""
    for statement in script("schema_003"):
        db.execute(statement)
    rows = db.execute("SELECT location, sku, lot, on_hand FROM balance WHERE on_hand <> 0").fetchall()
    digest = stock_digest((Cell(*row[:3]), row[3]) for row in rows)
    db.execute("UPDATE stock_digest SET digest = ?, cells = ?", [digest, len(rows)])


@ledger_migrations(transactional=False)
def m004_twin(db: Database) -> None:
    """The twin in force."""
    for statement in script("schema_004"):
        db.execute(statement)


@ledger_migrations(transactional=False)
def m005_firmware(db: Database) -> None:
    """What devices say of their firmware."""
    for statement in script("schema_005"):
        db.execute(statement)


@ledger_migrations(transactional=False)
def m006_arrival(db: Database) -> None:
    """When messages that could not be used arrived."""
    for statement in script("schema_006"):
        db.execute(statement)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a ledger file to the current schema; a no-op when it is there."""
    ledger_migrations.apply(Database(connection))


def current(connection: sqlite3.Connection) -> bool:
    """Whether the schema is complete; read-only."""
    return not ledger_migrations.pending(Database(connection))

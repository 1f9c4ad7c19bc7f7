"""Stock proof at the edge: the digest of all balances, kept as they change, and answers to the cloud's questions.

The kept digest says what the stock should be. A scan adds the balances up as they are in the file: where the two
differ, the file was changed by something else than this program, and a rebuild from the entries mends it.

Invariant: the digest changes in the transaction that changes a balance.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from edge_agent.errors import LedgerCorrupt
from edge_agent.ledger import database
from edge_agent.ledger.database import Connection
from edge_agent.ledger.sql import statement
from wire_protocol import proof
from wire_protocol.proof import DigestAnswer, DigestQuestion, StockDigest
from wire_protocol.stock import Balance, Cell


class ScannedStock(NamedTuple):
    """The stock as it is in the file, and whether it is what was kept."""

    found: StockDigest
    intact: bool


def add(connection: Connection, before: Mapping[Cell, int], after: Iterable[tuple[Cell, Balance]]) -> None:
    """Balances change, inside a transaction: on hand before and after, by cell."""
    digest = cells = 0
    for cell, balance in after:
        was, on_hand = before[cell], balance.on_hand
        if was != on_hand:
            digest += proof.digest_change(cell, on_hand - was)
            cells += (on_hand != 0) - (was != 0)
    if digest or cells:
        kept = connection.execute(statement("stock_digest")).fetchone()
        connection.execute(statement("set_stock_digest"), (proof.add(kept[0], digest), kept[1] + cells))


def reset(connection: Connection) -> None:
    """There are no balances any more, inside a transaction that derives them again."""
    connection.execute(statement("set_stock_digest"), (0, 0))


def note_sealed(connection: Connection) -> None:
    """Keep the digest of this moment for the cloud, if every entry is in a frame; inside a transaction."""
    if connection.execute(statement("nothing_waits")).fetchone()[0]:
        connection.execute(statement("note_sealed_digest"), (position(connection),))


def position(connection: Connection) -> int:
    """Where the ledger is: the sum over its logs."""
    return proof.log_position(connection.execute(statement("log_ends")))


def sealed(connection: Connection) -> StockDigest | None:
    """The proof of the last moment at which nothing waited; None before the first."""
    row = connection.execute(statement("stock_digest")).fetchone()
    return None if row[2] is None else StockDigest.make(*row[2:])


def scan(connection: Connection) -> ScannedStock:
    """Add the balances up as they are in the file, in one snapshot: the caller's, or one of its own."""
    with _snapshot(connection):
        found = StockDigest.of(_balances(connection), position(connection))
        kept = connection.execute(statement("stock_digest")).fetchone()[0]
        return ScannedStock(found, intact=found.digest == proof.as_text(kept))


def require_intact(connection: Connection) -> None:
    """Refuse to show balances that are not what was kept of them.

    Raises:
        LedgerCorrupt: the file was changed by something else than this program.
    """
    held = ((Cell(*row[:3]), row[3]) for row in connection.execute(statement("held")))
    if proof.stock_digest(held) != connection.execute(statement("stock_digest")).fetchone()[0]:
        raise LedgerCorrupt(
            "The balances in the ledger's file are not what was booked: a number here may be wrong.",
            hint="Derive them again from the entries: stocktide edge ledger rebuild",
        )


def answer(connection: Connection, question: DigestQuestion) -> DigestAnswer:
    """What the file holds of the cells that the cloud asks about, in one snapshot."""
    with _snapshot(connection):
        return proof.answer(question, _balances(connection), position(connection))


@contextmanager
def _snapshot(connection: Connection) -> Iterator[None]:
    if connection.in_transaction:
        yield
        return
    with database.snapshot(connection):
        yield


def _balances(connection: Connection) -> Iterator[tuple[Cell, int]]:
    for row in connection.execute(statement("all_balances")):
        yield Cell(*row[:3]), row[3]

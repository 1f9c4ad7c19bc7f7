"""A gateway's disk: a real SQLite ledger in memory, with a power switch and a size.

What is committed survives, what is not is gone: SQLite's own promise, which is assumed here and not tested. A full
disk is SQLite's own error, brought about by a page limit.

Invariant: the only module of the simulator that opens SQLite.
"""

import sqlite3
from functools import cache
from typing import Final

from edge_agent import schema
from edge_agent.clock import Clock
from edge_agent.database import Connection
from edge_agent.derivation import OWN
from edge_agent.ledger import Ledger
from edge_agent.sql import statement
from wire_protocol import frames
from wire_protocol.topics import STREAMS

PAGES_MAX: Final = 1_000_000


@cache
def _empty() -> Connection:
    """A ledger without owner, made once: migrations take longer than an hour of a small universe."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(connection)
    return connection


class Disk:
    """The storage of one gateway, through all its lives."""

    def __init__(self, gateway: str, epoch: str) -> None:
        self.gateway, self.epoch = gateway, epoch
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        _empty().backup(self.connection)
        for key, value in {"gateway": gateway, "epoch": epoch}.items():
            self.connection.execute(statement("set_meta"), (key, value))
        self.connection.execute(statement("insert_own_log"), (OWN, gateway, epoch))
        for stream in STREAMS:
            self.connection.execute(statement("insert_stream"), (stream, frames.genesis(gateway, epoch, stream)))

    def ledger(self, clock: Clock) -> Ledger:
        """The ledger as an agent has it open."""
        return Ledger(self.connection, clock, self.gateway)

    def power_off(self) -> None:
        """Whatever was not committed is gone."""
        if self.connection.in_transaction:
            self.connection.rollback()

    def fill(self) -> None:
        """Not one page more."""
        pages = self.connection.execute("PRAGMA page_count").fetchone()[0]
        self.connection.execute(f"PRAGMA max_page_count = {pages:d}")

    def free(self) -> None:
        """Room again."""
        self.connection.execute(f"PRAGMA max_page_count = {PAGES_MAX:d}")

    def close(self) -> None:
        """The universe has ended."""
        self.connection.close()

"""A gateway's disk: a real SQLite ledger in memory, with a power switch, a size and backups.

What is committed survives, what is not is gone: SQLite's own promise, which is assumed here and not tested. A full
disk is SQLite's own error, brought about by a page limit.

Invariant: the only module of the simulator that opens SQLite.
"""

import json
import sqlite3
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

from edge_agent.ledger import schema
from edge_agent.ledger.clock import Clock
from edge_agent.ledger.database import Connection
from edge_agent.ledger.derivation import OWN
from edge_agent.ledger.drafts import Draft, draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from firmware_sim.firmware.happening import Scan
from wire_protocol import frames
from wire_protocol.topics import STREAMS

PAGES_MAX: Final = 1_000_000

_OWN_BODIES: Final = """
SELECT body FROM entry UNION ALL
SELECT s.body FROM site_entry AS s JOIN log AS l USING (log) WHERE NOT l.staged AND l.gateway = ?
"""


class Happened(NamedTuple):
    """What makes an entry one and the same wherever it is found: a device's event, or a technician's slip of paper."""

    gateway: str
    who: str
    what: str


def happened(gateway: str, entry: dict[str, object]) -> Happened:
    """Which happening an entry tells of."""
    device, event, reference = (entry.get(name) for name in ("device", "event", "reference"))
    return Happened(gateway, str(device), str(event)) if event is not None else Happened(gateway, "", str(reference))


def as_draft(what: Scan, **fields: str) -> Draft:
    """The draft that says the same."""
    return draft(
        what.kind,
        what.sku,
        what.quantity,
        source=what.source,
        destination=what.destination,
        location=what.location,
        lot=what.lot,
        **fields,
    )


@cache
def _empty() -> Connection:
    """A ledger without owner, made once: migrations take longer than an hour of a small universe."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(connection)
    return connection


class Disk:
    """The storage of one machine, through all its lives."""

    def __init__(self, gateway: str) -> None:
        self.gateway = gateway
        self.connection = sqlite3.connect(":memory:", isolation_level=None)

    @classmethod
    def initialised(cls, gateway: str, epoch: str) -> "Disk":
        """What `stocktide edge init` leaves behind."""
        disk = cls(gateway)
        _empty().backup(disk.connection)
        for key, value in {"gateway": gateway, "epoch": epoch}.items():
            disk.connection.execute(statement("set_meta"), (key, value))
        disk.connection.execute(statement("insert_own_log"), (OWN, gateway, epoch))
        for stream in STREAMS:
            disk.connection.execute(statement("insert_stream"), (stream, frames.genesis(gateway, epoch, stream)))
        return disk

    def copy(self) -> "Disk":
        """A backup, or a clone."""
        twin = Disk(self.gateway)
        self.connection.backup(twin.connection)
        return twin

    def ledger(self, clock: Clock) -> Ledger:
        """The ledger as a process of this boot has it open."""
        ledger = Ledger(self.connection, clock, self.gateway)
        ledger.zero_ms = ledger.known_zero_ms()
        return ledger

    def content(self) -> Iterator[Happened]:
        """Everything that this gateway's logs on this disk tell of."""
        for (body,) in self.connection.execute(_OWN_BODIES, (self.gateway,)):
            yield happened(self.gateway, json.loads(body))

    def taught_boots(self) -> set[str]:
        """The boots whose true time this disk knows."""
        return {boot for boot, _ in self.connection.execute(statement("boot_zeros"))}

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
        """Thrown away, or the universe has ended."""
        self.connection.close()

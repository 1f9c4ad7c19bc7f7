"""Checks the ledger's file for damage, now and then, and keeps what was found beside it for `edge status`.

The result is a file of its own: what is damaged may not be there to be written to.

Invariant: each table is checked in a transaction of its own, by a connection and in a thread of its own.
"""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

import structlog

from edge_agent import files, wal
from edge_agent.errors import DiskFailing, EdgeError, LedgerCorrupt
from edge_agent.ledger import database
from edge_agent.ledger.sql import statement

log = structlog.get_logger("edge_agent.upkeep.file_check")


class Checked(NamedTuple):
    """The last check: when it was, since when its result is what it is, and the damage; None for none. Unix, ms."""

    at_ms: int
    since_ms: int
    problem: str | None

    @classmethod
    def last(cls, ledger: Path) -> Self | None:
        """What the agent has found on its last check; None when it never made one."""
        try:
            kept = json.loads(result_path(ledger).read_text())
            return cls(int(kept["at_ms"]), int(kept["since_ms"]), kept["problem"])
        except (OSError, ValueError, LookupError, TypeError):
            return None


def result_path(ledger: Path) -> Path:
    """Where the result of the last check is."""
    ledger = files.real(ledger)
    return ledger.with_name(ledger.name + ".check")


def wall_ms() -> int:
    """The wall clock: Unix, milliseconds."""
    return time.time_ns() // 1_000_000


class FileCheck:
    """Checks the file every `interval_s` seconds, and at the start."""

    def __init__(self, ledger: Path, interval_s: float, now_ms: Callable[[], int] = wall_ms) -> None:
        self._ledger, self._interval_s, self._now_ms = ledger, interval_s, now_ms

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await asyncio.to_thread(self.check)
            await asyncio.sleep(self._interval_s)

    def check(self) -> Checked | None:
        """Check once, and return what is known; says it in the log when the result is another than before."""
        before, now_ms = Checked.last(self._ledger), self._now_ms()
        try:
            problem = find_damage(self._ledger)
        except EdgeError as error:
            log.warning("file_check_postponed", reason=str(error))
            return before
        is_new = before is None or before.problem != problem
        found = Checked(now_ms, now_ms if before is None or is_new else before.since_ms, problem)
        if is_new and problem is not None:
            log.error("ledger_damaged", problem=problem, hint=LedgerCorrupt.hint)
        elif is_new and before is not None:
            log.info("ledger_intact_again")
        with suppress(OSError):  # a disk that is full or read-only has kept the one before
            files.write_whole(result_path(self._ledger), json.dumps(found._asdict()).encode(), mode=files.FILE_MODE)
        return found


def find_damage(ledger: Path) -> str | None:
    """What is wrong with the file, as far as SQLite can see: pages, indexes, types. None for nothing.

    Raises:
        EdgeError: it cannot be looked at now.
    """
    if kept := wal.kept(ledger):
        names = ", ".join(log.name for log in kept)
        return f"bookings were lost from a damaged log, kept as {names}; remove it when you have looked at it"
    try:
        with database.reading(ledger) as connection:
            for (table,) in connection.execute(statement("tables")).fetchall():
                # The name is SQLite's own answer; a PRAGMA takes no parameters.
                quoted = table.replace('"', '""')
                found = connection.execute(f'PRAGMA quick_check("{quoted}")').fetchone()[0]
                if found != "ok":
                    return f"table {table}: {found}"
    except (LedgerCorrupt, DiskFailing) as error:
        return str(error)
    return None

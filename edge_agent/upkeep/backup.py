"""A copy of the ledger's file, made while the agent runs: of one moment, checked, never over another file.

The identity is not in the ledger and so not in the copy: a key that is in two places is no gateway's own.

Invariant: the copy has its name once it is whole and was found undamaged.
"""

import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from edge_agent import files
from edge_agent.errors import BadInput, LedgerCorrupt
from edge_agent.ledger import connections, database
from edge_agent.ledger.database import Connection
from edge_agent.ledger.sql import statement

PAGES_AT_ONCE: Final = 1_024  # 4 MiB
RESTARTS_MAX: Final = 3

Progress = Callable[[int, int], None]
"""Gets the pages copied, and all of them."""


class BackedUp(NamedTuple):
    """What is in the copy."""

    file: Path
    gateway: str
    epoch: str
    entries: int
    size_bytes: int


class _Restarting(Exception):
    """The agent writes faster than pages are copied."""


def backup(ledger: Path, file: Path, progress: Progress = lambda _done, _of: None) -> BackedUp:
    """Copy a ledger.

    Raises:
        BadInput: there is a file of that name, or it cannot be written.
        LedgerCorrupt: the ledger is damaged, and so is its copy, which is not kept.
        EdgeError: the ledger cannot be read.
    """
    partial = files.partial_of(file)
    if file.exists() or file.is_symlink():
        raise BadInput(f"{file} exists already; it is not overwritten.", hint="Name another file.")
    try:
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise BadInput(f"{file} cannot be written: {error.strerror}.", hint="Name a file elsewhere.") from None
    try:
        with database.reading(ledger) as source, closing(connections.connect(partial, "mode=rw")) as target:
            _copy(source, target, progress)
        with connections.in_our_words(), closing(connections.connect(partial, "mode=rw")) as copied:
            found = _checked(copied)
        files.sync(partial)
        _name(partial, file)
    finally:
        for rest in (partial, connections.log_of(partial), partial.with_name(partial.name + "-shm")):
            rest.unlink(missing_ok=True)
    return BackedUp(file, *found, file.stat().st_size)


def _copy(source: Connection, target: Connection, progress: Progress) -> None:
    """By pages, so that the agent's log can be emptied meanwhile; at once, where the agent writes all the time.

    SQLite begins again whenever another process has written between two steps
    (https://sqlite.org/backup.html, section "Example 2").
    """
    left, restarts = [1 << 62], [0]

    def step(_status: int, remaining: int, total: int) -> None:
        restarts[0] += remaining > left[0]
        left[0] = remaining
        progress(total - remaining, total)
        if restarts[0] > RESTARTS_MAX:
            raise _Restarting

    try:
        source.backup(target, pages=PAGES_AT_ONCE, progress=step, sleep=0)
    except _Restarting:
        source.backup(target, pages=-1)


def _checked(copied: Connection) -> tuple[str, str, int]:
    problem = copied.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise LedgerCorrupt(f"The ledger is damaged, and so would be its copy: {problem}.")
    facts = database.meta(copied)
    return facts["gateway"], facts["epoch"], copied.execute(statement("entry_count")).fetchone()[0]


def _name(partial: Path, file: Path) -> None:
    """Give the copy its name, unless another file has got it meanwhile."""
    try:
        with suppress(FileNotFoundError):
            os.link(partial, file)
            partial.unlink()
    except FileExistsError:
        raise BadInput(f"{file} exists already; it is not overwritten.", hint="Name another file.") from None
    except OSError:  # a file system without hard links
        partial.rename(file)
    files.sync(file.parent)

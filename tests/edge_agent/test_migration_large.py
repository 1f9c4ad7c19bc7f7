"""A ledger of a million entries is brought up to date with signs of life, and may be interrupted at any of them."""

import multiprocessing
import os
import signal
from contextlib import closing
from pathlib import Path

import pytest

from edge_agent.ledger import database
from edge_agent.ledger.sql import SCHEMA
from tests.edge_agent import acts

ENTRIES = 1_000_000


def _killed_at_sign(path: Path, sign: int) -> None:
    """Migrate, and die at a sign of life."""
    seen = 0

    def progress(_version: int) -> None:
        nonlocal seen
        seen += 1
        if seen == sign:
            os.kill(os.getpid(), signal.SIGKILL)

    database.open_writer(path, progress).close()


@pytest.mark.slow
def test_a_million_entries_are_migrated_through_interruptions(path: Path) -> None:
    """F3: with progress, and going on after SIGKILL in the middle of a statement."""
    acts.older_ledger(path, entries=ENTRIES)
    forks = multiprocessing.get_context("forkserver")
    for sign in (1, 3, 8):
        process = forks.Process(target=_killed_at_sign, args=(path, sign))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    signs: list[int] = []
    with closing(database.open_writer(path, signs.append)) as connection:
        assert database.version(connection) == SCHEMA
        assert connection.execute("SELECT count(*) FROM movement WHERE log = 0").fetchone()[0] == ENTRIES
        assert connection.execute("SELECT on_hand, last_log FROM balance ORDER BY location").fetchall() == [
            (-ENTRIES, 0),
            (ENTRIES, 0),
        ]
    assert len(signs) > SCHEMA - 1  # some of them from within a statement
    assert sorted(signs) == signs

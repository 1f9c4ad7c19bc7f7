"""Processes that kill themselves at a step: at the nth SQL statement, fsync, rename, or opening of a file to write.

Each act runs in a process of its own, forked from one that has loaded everything, and ends by SIGKILL: no `finally`, no
rollback, no flush.
"""

import multiprocessing
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from edge_agent import files
from edge_agent.ledger import connections
from edge_agent.ledger.connections import Connection

CHANGES: Final = frozenset({"os.rename", "os.remove", "os.mkdir", "os.symlink", "os.link", "os.truncate"})
TO_WRITE: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT
WAIT_S: Final = 60.0
_READS: Final = re.compile(r"(?:\s|--[^\n]*\n)*(?:SELECT\b|PRAGMA \w+$)")  # what is on the disk stays as it was
_END: Final = re.compile("COMMIT")

Act = Callable[[Path], object]

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.edge_agent.killed", "tests.edge_agent.acts", "tests.cloud_ingest.authority_acts"])


def die_at(step: int, act: Act, path: Path) -> None:
    """Do an act, and die at its nth step; 0 for never.

    A statement inside a transaction is no step, but its end is: SQLite has changed nothing by then that anybody sees.
    """
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & TO_WRITE):
            tick()

    plain_connect, plain_sync = connections.connect, files.sync

    def connect(path: Path, mode: str, factory: type[Connection] = sqlite3.Connection) -> Connection:
        made = plain_connect(path, mode, factory)
        made.set_trace_callback(partial(traced, made))
        return made

    def traced(connection: Connection, statement: str) -> None:
        if not _READS.match(statement) and (not connection.in_transaction or _END.match(statement)):
            tick()

    def sync(place: Path) -> None:
        tick()
        plain_sync(place)
        tick()

    connections.connect, files.sync = connect, sync
    sys.addaudithook(audited)
    act(path)


def run(act: Act, path: Path, step: int = 0) -> int:
    """Do an act in a process of its own; its exit code, -9 when it was killed at that step."""
    process = _forks.Process(target=die_at, args=(step, act, path))
    process.start()
    process.join(WAIT_S)
    assert process.exitcode is not None, "the act hangs"
    return process.exitcode


def at_once(act: Act, path: Path, times: int) -> list[int]:
    """Do an act in several processes at once; their exit codes."""
    processes = [_forks.Process(target=die_at, args=(0, act, path)) for _ in range(times)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(WAIT_S)
    return [process.exitcode if process.exitcode is not None else 1 for process in processes]

"""Server processes: started detached, found again from a record, ended by process id.

Invariant: a recorded process id is used only while the process that has it started when the record says, so a
recycled id is never signalled.
"""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import psutil
from pydantic import BaseModel

from testbed.eventually import NeverHappened, eventually
from testbed.services.errors import ServerFailed

POLL_S: Final = 0.01
KILL_S_MAX: Final = 30.0
# psutil derives the start from the boot time, which moves when the clock is set.
START_SLACK_S: Final = 2.0
# Nothing of the caller's language, time zone or PG* variables reaches a server.
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT: Final = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


class ProcessRecord(BaseModel):
    """What names a process beyond doubt."""

    pid: int
    started_s: float

    @classmethod
    def of(cls, pid: int) -> Self:
        return cls(pid=pid, started_s=psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The recorded process, or None when it is gone."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_s) < START_SLACK_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


class ServerProcess:
    """One running server with its children."""

    def __init__(self, record: ProcessRecord, *, is_child: bool = False) -> None:
        self.record = record
        self._is_child = is_child  # only the process that started it can reap it

    @classmethod
    def start(cls, command: Sequence[str], *, log: Path) -> Self:
        """Start a server in a session of its own: an interrupt at the terminal is for the tests, not for it.

        Not through `subprocess`, whose objects complain when the process outlives them; shared servers do.
        """
        pid = os.posix_spawnp(
            command[0],
            list(command),
            ENVIRONMENT,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        return cls(ProcessRecord.of(pid), is_child=True)

    def is_running(self) -> bool:
        self._reap()
        return self.record.find() is not None

    def send(self, number: signal.Signals) -> None:
        if process := self.record.find():
            process.send_signal(number)

    def end(self, number: signal.Signals, *, timeout_s: float) -> None:
        """Ask the server to stop and wait; whatever is left after the timeout is killed."""
        if process := self.record.find():
            process.send_signal(number)
            self._wait([process], timeout_s)
        self.kill()

    def kill(self) -> None:
        """SIGKILL the server and all its children, and wait until none is left.

        The parent is frozen first so that it cannot start another child. PostgreSQL would refuse to start again while
        one of the old children lives.
        """
        if process := self.record.find():
            family = _freeze(process)
            for member in family:
                _kill(member)
            self._wait(family, timeout_s=KILL_S_MAX)
        self._reap()

    def _wait(self, processes: list[psutil.Process], timeout_s: float) -> None:
        def gone() -> bool:
            self._reap()
            return not any(_alive(process) for process in processes)

        with suppress(NeverHappened):
            eventually(gone, within_s=timeout_s, poll_s=POLL_S)

    def _reap(self) -> None:
        if self._is_child and os.waitpid(self.record.pid, os.WNOHANG)[0]:
            self._is_child = False


def require(condition: Callable[[], bool], server: ServerProcess, *, log: Path, what: str, timeout_s: float) -> None:
    """Wait until a server that was just started is ready.

    Raises:
        ServerFailed: it exited or took too long; the message ends with the last lines of its log.
    """

    def settled() -> str:
        return "ready" if condition() else "" if server.is_running() else "exited"

    with suppress(NeverHappened):
        if eventually(settled, within_s=timeout_s, poll_s=POLL_S) == "ready":
            return
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise ServerFailed(f"{what} is not ready after {timeout_s:g} s at most. Its log ends:\n{tail}\n")


def working_in(directory: Path) -> list[psutil.Process]:
    """The live processes whose working directory this is."""
    place = str(directory.resolve())
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == place:
                found.append(process)
    return found


def _freeze(process: psutil.Process) -> list[psutil.Process]:
    try:
        process.suspend()
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return [process]


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

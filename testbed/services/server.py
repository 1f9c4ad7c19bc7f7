"""What a private PostgreSQL and a private Mosquitto have in common: a directory, a port, a process, an owner.

A server keeps its port and its data through `stop`, `kill` and `restart`; `close` removes it. Its directory holds
`server.json`, which says who owns it, so that servers left behind by a killed test run are found and removed. With
`disk_mb` its data lies on a disk of that size, which a test can fill; where the environment says so, in memory anyway.

Invariant: a server listens on loopback only.
"""

import os
import shutil
import signal
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Final, Self

from pydantic import BaseModel

from testbed.services import disk
from testbed.services import installation as installations
from testbed.services.errors import ServerFailed
from testbed.services.installation import Installation
from testbed.services.processes import ProcessRecord, ServerProcess, require

READY_S_MAX: Final = 60.0
STOP_S_MAX: Final = 30.0
PORT_TRIES_MAX: Final = 5
UNFINISHED_S_MAX: Final = 600.0
HOST: Final = "127.0.0.1"
MEMORY_VARIABLE: Final = "STOCKTIDE_TEST_MEMORY_MB"  # of memory that the data of a server may take; absent for a disk


class ServerRecord(BaseModel):
    """The contents of `server.json`. The owner is the process of a test, or the state file of shared servers."""

    port: int
    process: ProcessRecord
    owner_process: ProcessRecord | None = None
    owner_file: Path | None = None

    def is_orphan(self) -> bool:
        if self.owner_file is not None:
            return not self.owner_file.exists()
        return self.owner_process is None or self.owner_process.find() is None


class Server(ABC):
    """A server of our own. Use it as `with …() as server`, or call `start` and, in the end, `close`."""

    kind: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(
        self, installation: Installation | None = None, *, owner_file: Path | None = None, disk_mb: int | None = None
    ) -> None:
        self._installation = installation
        self._owner_file = owner_file
        self._disk_mb = disk_mb
        self._directory: Path | None = None
        self._port: int | None = None
        self._server: ServerProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def installation(self) -> Installation:
        if self._installation is None:
            self._installation = installations.current()
        return self._installation

    @property
    def port(self) -> int:
        """The port on 127.0.0.1, the same for as long as the server exists."""
        if self._port is None:
            raise ServerFailed(f"{self.kind} was never started.", hint="Call start().")
        return self._port

    @property
    def directory(self) -> Path:
        """Where the server keeps everything; the server sees it under the same name."""
        if self._directory is None:
            raise ServerFailed(f"{self.kind} was never started.", hint="Call start().")
        return self._directory

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def data(self) -> Path:
        """The directory that belongs to the server's account."""
        return self.directory / "data"

    @property
    def pid(self) -> int:
        """The server's process; it must have been started."""
        assert self._server is not None
        return self._server.record.pid

    @property
    def is_running(self) -> bool:
        return self._server is not None and self._server.is_running()

    def start(self) -> None:
        """Start the server and wait until it serves; a server that runs is left alone."""
        if self.is_running:
            return
        if self._directory is not None:
            self._launch()
            return
        try:
            self._create()
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """Stop in good order and keep the data."""
        if self._server is not None:
            self._server.end(self.stop_signal, timeout_s=STOP_S_MAX)

    def kill(self) -> None:
        """SIGKILL the server and its children: what a power cut leaves, except for the operating system's cache."""
        if self._server is not None:
            self._server.kill()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server, such as SIGHUP to reload, or SIGSTOP and SIGCONT to freeze it for a while."""
        if self._server is not None:
            self._server.send(number)

    def restart(self) -> None:
        """Stop in good order if it runs, and start again on the same port and data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill the server and remove its data. It can be called at any time, more than once."""
        self.kill()
        if self._directory is not None:
            disk.unmount(self.data)
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def adopt(self, directory: Path) -> bool:
        """Take over a server that another process made. Returns False if there is nothing to take over."""
        try:
            record = ServerRecord.model_validate_json((directory / "server.json").read_text())
        except (OSError, ValueError):
            return False
        self._directory, self._port = directory, record.port
        self._server = ServerProcess(record.process)
        return True

    @abstractmethod
    def _prepare(self) -> None:
        """Fill the data directory of a new server."""

    def _recover(self) -> None:  # noqa: B027 - most servers leave nothing
        """Remove what a killed server leaves that would keep the next one from starting."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The command that runs the server in the foreground on `port` with `data`."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether the server answers now."""

    def _create(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix=f"{self.kind}-", dir=self.installation.scratch))
        self._directory.chmod(0o755)
        self.data.mkdir(mode=0o700)
        if size_mb := self._disk_mb or int(os.environ.get(MEMORY_VARIABLE, "0")):
            disk.mount(self.data, size_mb)
        for attempt in range(PORT_TRIES_MAX):
            # Between finding a free port and listening on it, another test's server may take it.
            self._port = free_port()
            try:
                self._prepare()
                self._launch()
            except ServerFailed:
                taken = "in use" in self.log.read_text(errors="replace") if self.log.exists() else False
                if not taken or attempt == PORT_TRIES_MAX - 1:
                    raise
                self.log.unlink()
            else:
                return

    def _launch(self) -> None:
        self._recover()
        self.installation.own(self.data)
        self._server = ServerProcess.start(self._command(), log=self.log)
        owner = ProcessRecord.of(os.getpid()) if self._owner_file is None else None
        record = ServerRecord(
            port=self.port, process=self._server.record, owner_process=owner, owner_file=self._owner_file
        )
        (self.directory / "server.json").write_text(record.model_dump_json())
        require(self._is_ready, self._server, log=self.log, what=self.kind, timeout_s=READY_S_MAX)


def free_port() -> int:
    """A TCP port that is free on loopback now."""
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether somebody listens on a loopback port."""
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def remove_orphans(scratch: Path) -> int:
    """Kill and remove the servers whose owner is gone. Returns how many there were."""
    removed = 0
    for directory in scratch.iterdir():
        try:
            record = ServerRecord.model_validate_json((directory / "server.json").read_text())
        except (OSError, ValueError):
            # No record yet: either it is being made right now, or its maker died before it had started anything.
            if directory.exists() and time.time() - directory.stat().st_mtime > UNFINISHED_S_MAX:
                shutil.rmtree(directory, ignore_errors=True)
            continue
        if record.is_orphan():
            ServerProcess(record.process).kill()
            disk.unmount(directory / "data")
            shutil.rmtree(directory, ignore_errors=True)
            removed += 1
    return removed

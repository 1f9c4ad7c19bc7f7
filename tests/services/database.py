"""A PostgreSQL server with TimescaleDB that a test or a benchmark owns.

Invariant: durability is on (fsync, synchronous commit, full page writes), because durability is what the tests are
about.
"""

import signal
import subprocess
from pathlib import Path
from typing import ClassVar, Final

import psycopg

from tests.services.errors import ServerFailed
from tests.services.installation import Installation
from tests.services.processes import ENVIRONMENT, wait_until, working_in
from tests.services.server import HOST, Server

SHARED_BUFFERS_MB: Final = 128
CONNECTIONS_MAX: Final = 200
RECOVER_S_MAX: Final = 10.0
_SETTINGS: Final = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "shared_preload_libraries": "timescaledb",
    "timescaledb.telemetry_level": "off",
    "max_connections": str(CONNECTIONS_MAX),
    "max_locks_per_transaction": "256",  # one merge may touch many chunks
    "max_worker_processes": "32",  # TimescaleDB runs a scheduler in each test's database
    "dynamic_shared_memory_type": "mmap",  # lives in the data directory, so a killed server leaves nothing behind
    "jit": "off",
    "max_wal_size": "4GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
}


class PrivateDatabase(Server):
    """A server of one's own: `with PrivateDatabase() as database: psycopg.connect(database.url)`.

    Any local user is the superuser `postgres`, without a password. `settings` are added to postgresql.conf.
    """

    kind: ClassVar[str] = "postgresql"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # "fast": disconnect everybody, checkpoint, exit

    def __init__(
        self,
        installation: Installation | None = None,
        *,
        shared_buffers_mb: int = SHARED_BUFFERS_MB,
        settings: dict[str, str] | None = None,
        owner_file: Path | None = None,
    ) -> None:
        super().__init__(installation, owner_file=owner_file)
        self._settings = {**_SETTINGS, "shared_buffers": f"{shared_buffers_mb}MB", **(settings or {})}

    @property
    def url(self) -> str:
        """The URL of the database `postgres`."""
        return self.url_of("postgres")

    def url_of(self, name: str) -> str:
        """The URL of a database of this server."""
        return f"postgresql://postgres@{HOST}:{self.port}/{name}"

    def _prepare(self) -> None:
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        lines = [f"{name} = '{value}'" for name, value in self._settings.items()]
        (self.data / "postgresql.auto.conf").write_text("\n".join([*lines, f"port = {self.port}", ""]))

    def _initdb(self) -> None:
        self.installation.own(self.data)
        arguments = ["--no-sync", "--no-instructions", "--auth=trust", "--username=postgres", "--encoding=UTF8"]
        program = self.installation.postgres_bin / "initdb"
        command = self.installation.command(program, f"--pgdata={self.data}", "--locale=C.UTF-8", *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
        if done.returncode != 0:
            raise ServerFailed(f"initdb failed: {done.stderr}")

    def _recover(self) -> None:
        """Remove the lock file of a killed server, after making sure that none of its processes is left.

        PostgreSQL takes a zombie for a live owner of the lock, and where process 1 reaps nothing zombies stay.
        """
        if not wait_until(lambda: not working_in(self.data), timeout_s=RECOVER_S_MAX):
            raise ServerFailed("Processes of the killed server still run.", hint=f"They work in {self.data}.")
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _command(self) -> list[str]:
        return self.installation.command(self.installation.postgres_bin / "postgres", "-D", str(self.data))

    def _is_ready(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=5):
                return True
        except psycopg.OperationalError:
            return False

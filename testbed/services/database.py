"""A PostgreSQL server with TimescaleDB that a test or a benchmark owns, and streaming replicas of it.

Invariant: durability is on (fsync, synchronous commit, full page writes), because durability is what the tests are
about.
"""

import signal
import subprocess
from pathlib import Path
from typing import ClassVar, Final

import psycopg

from testbed.eventually import NeverHappened, eventually
from testbed.services.errors import ServerFailed
from testbed.services.installation import Installation
from testbed.services.processes import ENVIRONMENT, working_in
from testbed.services.server import HOST, Server

SHARED_BUFFERS_MB: Final = 128
CONNECTIONS_MAX: Final = 200
RECOVER_S_MAX: Final = 30.0
REPLICA_S_MAX: Final = 30.0
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

    Any local user is the superuser `postgres`, without a password. `settings` are added to postgresql.conf. With a
    `primary` it is a physical replica of that server, read-only until `promote`.
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
        disk_mb: int | None = None,
        primary: "PrivateDatabase | None" = None,
    ) -> None:
        super().__init__(installation, owner_file=owner_file, disk_mb=disk_mb)
        self._primary = primary
        self._settings = {**_SETTINGS, "shared_buffers": f"{shared_buffers_mb}MB", **(settings or {})}

    @property
    def url(self) -> str:
        """The URL of the database `postgres`."""
        return self.url_of("postgres")

    def url_of(self, name: str) -> str:
        """The URL of a database of this server."""
        return f"postgresql://postgres@{HOST}:{self.port}/{name}"

    def stop_replicating(self) -> None:
        """Make a replica take nothing more from its primary, so that it lags from here on."""
        with psycopg.connect(self.url, autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET primary_conninfo = ''")
            admin.execute("SELECT pg_reload_conf()")
            try:
                eventually(lambda: not _is_streaming(admin), within_s=REPLICA_S_MAX)
            except NeverHappened as error:
                raise ServerFailed("The replica goes on replicating.") from error

    def promote(self) -> None:
        """Make a replica a primary of its own, for good."""
        with psycopg.connect(self.url, autocommit=True) as admin:
            if admin.execute("SELECT pg_promote(true, 30)").fetchone() != (True,):
                raise ServerFailed("The replica was not promoted.", hint=f"See {self.log}.")

    def _prepare(self) -> None:
        if not (self.data / "PG_VERSION").exists():
            if self._primary is None:
                self._initdb()
            else:
                self._copy(self._primary)
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

    def _copy(self, primary: "PrivateDatabase") -> None:
        """Make the data directory of a replica: pg_basebackup, which also takes the log that is written meanwhile."""
        self.installation.own(self.data)
        source = f"host={HOST} port={primary.port} user=postgres application_name=replica"
        arguments = [f"--pgdata={self.data}", f"--dbname={source}", "--wal-method=stream", "--checkpoint=fast"]
        command = self.installation.command(self.installation.postgres_bin / "pg_basebackup", "--no-sync", *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
        if done.returncode != 0:
            raise ServerFailed(f"pg_basebackup failed: {done.stderr}")
        (self.data / "standby.signal").touch()
        self._settings["primary_conninfo"] = source

    def _recover(self) -> None:
        """Remove the lock file of a killed server, after making sure that none of its processes is left.

        PostgreSQL takes a zombie for a live owner of the lock, and where process 1 reaps nothing zombies stay.
        """
        try:
            eventually(lambda: not working_in(self.data), within_s=RECOVER_S_MAX)
        except NeverHappened as error:
            raise ServerFailed(
                "Processes of the killed server still run.", hint=f"They work in {self.data}."
            ) from error
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _command(self) -> list[str]:
        return self.installation.command(self.installation.postgres_bin / "postgres", "-D", str(self.data))

    def _is_ready(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=5):
                return True
        except psycopg.OperationalError:
            return False


def _is_streaming(replica: "psycopg.Connection[tuple[int]]") -> bool:
    return replica.execute("SELECT 1 FROM pg_stat_wal_receiver").fetchone() is not None

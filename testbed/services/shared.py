"""The servers that the whole test suite shares: started once, healed when dead, removed together.

`up` keeps them until `down`. `run` starts them if need be, runs one command, and removes them again unless somebody
else uses them: every `run` holds a shared lock on `.services/users`, and `up` leaves `keep` in the state.

A file system on a disk spends more time on making and removing a few hundred databases than the tests do in them, so
tests have their data in memory where there is room; a benchmark never has.

Invariant: `.services/state.json` names only servers that were started, and every change to it is made under a lock.
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final

from pydantic import BaseModel

from testbed.services import disk
from testbed.services import installation as installations
from testbed.services.broker import PrivateBroker
from testbed.services.database import PrivateDatabase
from testbed.services.errors import NotRunning, ServicesError
from testbed.services.installation import Installation
from testbed.services.server import MEMORY_VARIABLE, Server, remove_orphans

DATABASE_VARIABLE: Final = "STOCKTIDE_TEST_DATABASE_URL"
MQTT_VARIABLE: Final = "STOCKTIDE_TEST_MQTT_URL"
SHARED_BUFFERS_MB: Final = 512
IN_MEMORY_MB: Final = 6 * 1024  # of each server at most, and of the tests' own files; together they have a few
MEMORY_MB_MIN: Final = 3 * IN_MEMORY_MB  # free, before that is done
HOME: Final = Path(__file__).resolve().parents[2] / ".services"
STATE: Final = HOME / "state.json"
HINT: Final = "Run `make services`."


class State(BaseModel):
    """The contents of the state file: the directories of the shared servers that we started."""

    database: Path | None = None
    broker: Path | None = None
    keep: bool = False


def database_url() -> str:
    """The URL of the shared server's database `postgres`, as its superuser.

    Raises:
        NotRunning: it is not up.
    """
    if given := os.environ.get(DATABASE_VARIABLE):
        return given
    server = PrivateDatabase()
    return server.url if _adopted(server, _read().database) else _not_running("PostgreSQL")


def mqtt_url() -> str:
    """The URL of the shared broker: `mqtt://127.0.0.1:PORT`, anonymous.

    Raises:
        NotRunning: it is not up.
    """
    if given := os.environ.get(MQTT_VARIABLE):
        return given
    server = PrivateBroker()
    return server.url if _adopted(server, _read().broker) else _not_running("Mosquitto")


def up(*, keep: bool = True) -> None:
    """Start what does not run, in the data it had; what runs is left alone."""
    with _locked():
        state = _read()
        state.keep = state.keep or keep
        _write(state)  # first, because servers whose state file is missing are orphans
        if (installation := _installation()) is None:
            return
        remove_orphans(installation.scratch)
        if DATABASE_VARIABLE not in os.environ:
            database = PrivateDatabase(
                installation,
                shared_buffers_mb=SHARED_BUFFERS_MB,
                owner_file=STATE,
                settings={"max_wal_size": "1GB"} if MEMORY_VARIABLE in os.environ else None,
            )
            state.database = _ensure(database, state.database)
            _write(state)
        if MQTT_VARIABLE not in os.environ:
            state.broker = _ensure(PrivateBroker(installation=installation, owner_file=STATE), state.broker)
            _write(state)


def down() -> None:
    """Stop the shared servers and remove their data, and whatever killed test runs have left."""
    with _locked():
        state = _read()
        for server, directory in ((PrivateDatabase(), state.database), (PrivateBroker(), state.broker)):
            if directory is not None and server.adopt(directory):
                server.close()
        STATE.unlink(missing_ok=True)
        try:
            remove_orphans(installations.current().scratch)
        except ServicesError:
            return  # nothing is installed, so nothing was left


def run(command: Sequence[str], *, in_memory: bool = False) -> int:
    """Run a command with the servers up and return its exit code; 128 + N if signal N ended it.

    `in_memory`: where there is room, its temporary files and the data of servers that it starts are in memory.
    """
    HOME.mkdir(exist_ok=True)
    in_memory = in_memory and disk.can_mount() and disk.memory_mb() >= MEMORY_MB_MIN
    with (HOME / "users").open("w") as users, _data_in_memory() if in_memory else nullcontext():
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            up(keep=False)
            return _run(command)
        finally:
            if _is_last(users) and not _read().keep:
                down()


def _run(command: Sequence[str]) -> int:
    def interrupted(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, interrupted)
    with subprocess.Popen(command) as child:
        try:
            code = child.wait()
        except BaseException:
            child.terminate()
            raise
    return code if code >= 0 else 128 - code


@contextmanager
def _data_in_memory() -> Iterator[None]:
    """What is started in the block has its temporary files and the data of its servers in memory."""
    with TemporaryDirectory(prefix="stocktide-tests-") as made:
        folder = Path(made)
        disk.mount(folder, IN_MEMORY_MB)
        folder.chmod(0o755)  # servers with an account of their own read here
        before = os.environ.copy()
        os.environ |= {"TMPDIR": made, MEMORY_VARIABLE: str(IN_MEMORY_MB)}
        try:
            yield
        finally:
            os.environ.clear()
            os.environ |= before
            disk.unmount(folder)


def _is_last(users: IO[str]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _installation() -> Installation | None:
    try:
        return installations.provide()
    except ServicesError as error:
        if DATABASE_VARIABLE in os.environ and MQTT_VARIABLE in os.environ:
            print(f"Using the given servers. Tests that need servers of their own will fail. {error}")  # noqa: T201 - for a person
            return None
        raise


def _ensure(server: Server, directory: Path | None) -> Path:
    if directory is not None:
        server.adopt(directory)
    server.start()
    return server.directory


def _adopted(server: Server, directory: Path | None) -> bool:
    return directory is not None and server.adopt(directory) and server.is_running


def _not_running(what: str) -> str:
    raise NotRunning(f"The shared {what} is not running.", hint=HINT)


def _read() -> State:
    try:
        return State.model_validate_json(STATE.read_text())
    except FileNotFoundError:
        return State()


def _write(state: State) -> None:
    partial = STATE.with_suffix(".partial")
    partial.write_text(state.model_dump_json(indent=2))
    partial.rename(STATE)


@contextmanager
def _locked() -> Iterator[None]:
    HOME.mkdir(exist_ok=True)
    with (HOME / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

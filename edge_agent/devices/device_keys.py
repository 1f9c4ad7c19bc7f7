"""The keys of the twin's devices in the password file of the gateway's own broker.

The file has other users too, which an operator added with `stocktide broker passwd`: they stay. Whom the twin has put
there leaves with it.

Invariant: the file is replaced as a whole, and stays with the owner and the group that it had; no other user may read
it.
"""

import asyncio
import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from edge_agent.errors import EdgeError
from edge_agent.ledger import database
from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from edge_agent.ledger.writer import Submit
from edge_agent.provisioning import twin
from wire_protocol import names
from wire_protocol.twin import DesiredState

KEYED: Final = "keyed_devices"  # whom the twin has put into the file, or is about to
RELOAD_S_MAX: Final = 10.0
RETRY_S: Final = 30.0

log = structlog.get_logger("edge_agent.devices.device_keys")


def note_keyed(ledger: Ledger, wanted: Mapping[str, str]) -> frozenset[str]:
    """Note whom the file is going to have, in a transaction of the ledger. Returns whom it may have had before.

    Both are noted until the file is written (`note_written`): a gateway that dies before must still know whom to take
    out.
    """
    had = frozenset(json.loads(database.meta(ledger.connection).get(KEYED, "[]"))) - {names.AGENT_USER}
    _note(ledger, had | wanted.keys())
    return had


def note_written(ledger: Ledger, wanted: Mapping[str, str]) -> None:
    """The file has just these of the twin's: an operator added any other user in it."""
    _note(ledger, wanted.keys())


def _note(ledger: Ledger, devices: Iterable[str]) -> None:
    ledger.connection.execute(statement("set_meta"), (KEYED, json.dumps(sorted(devices))))


def wanted(state: DesiredState) -> dict[str, str]:
    """The hashes of the keys of a twin, by device."""
    keys = {name: device.key for name, device in state.devices.items() if device.key is not None}
    # A twin that was stored before this was refused must not lock the gateway out of its own broker.
    keys.pop(names.AGENT_USER, None)
    return keys


@dataclass(slots=True)
class PasswordFile:
    """The broker's password file; `reload_command` makes the broker read it again."""

    path: Path
    reload_command: str | None = None
    _reload_owed: bool = True
    """The agent may have died between writing the file and having it read."""

    def put(self, keys: Mapping[str, str], had: frozenset[str]) -> bool:
        """Have these devices with these hashes and none of the others of `had`. Returns whether anything changed.

        Raises:
            OSError: the file cannot be read, or not be replaced by one that the broker can read, or the broker's reload
                command failed; what was not done is done the next time.
        """
        users = self._users()
        new = {user: stored for user, stored in users.items() if user not in had} | dict(keys)
        if changed := new != users:
            self._replace("".join(f"{user}:{stored}\n" for user, stored in new.items()))
            self._reload_owed = True
            log.info("device_keys_written", file=str(self.path), devices=len(keys))
        if self._reload_owed:
            self._reload()
            self._reload_owed = False
        return changed

    def _users(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        try:
            lines = [line.partition(":") for line in self.path.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise OSError(f"{self.path} is not a password file: {error}") from error
        return {user: stored for user, found, stored in lines if found}

    def _replace(self, text: str) -> None:
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)  # makes it 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as partial:
                partial.write(text)
                partial.flush()
                os.fsync(partial.fileno())
                if self.path.exists():
                    # The broker is another user, who must still be able to read it.
                    there = self.path.stat()
                    if (there.st_uid, there.st_gid) != (os.geteuid(), os.getegid()):
                        os.fchown(partial.fileno(), there.st_uid, there.st_gid)
                    os.fchmod(partial.fileno(), there.st_mode & 0o640)
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _reload(self) -> None:
        if self.reload_command is None:
            return
        try:
            command = shlex.split(self.reload_command)
            subprocess.run(command, check=True, capture_output=True, timeout=RELOAD_S_MAX)  # noqa: S603 - the operator's
        except (ValueError, subprocess.SubprocessError) as error:
            raise OSError(f"The broker did not read its password file again: {error}") from error


class KeyKeeper:
    """Has the keys of the twin's devices in the broker's password file, from the start and whenever the twin changes.

    Args:
        file: the broker's.
        reader: a read-only connection to the ledger.
        submit: hands a write to the ledger's writer.
    """

    def __init__(self, file: PasswordFile, reader: Connection, submit: Submit) -> None:
        self._file, self._reader, self._submit = file, reader, submit
        self._due = asyncio.Event()

    def due(self) -> None:
        """Other keys may be wanted. Call it in the event loop's thread."""
        self._due.set()

    async def run(self) -> None:
        """Keep the file until cancelled."""
        while True:
            self._due.clear()
            keys = wanted(twin.state(self._reader))
            try:
                had = await asyncio.wrap_future(self._submit(partial(note_keyed, wanted=keys)))
                await asyncio.to_thread(self._file.put, keys, had)
                await asyncio.wrap_future(self._submit(partial(note_written, wanted=keys)))
            except (EdgeError, OSError) as error:
                log.warning("device_keys_not_written", file=str(self._file.path), reason=str(error))
                await asyncio.sleep(RETRY_S)
            else:
                await self._due.wait()

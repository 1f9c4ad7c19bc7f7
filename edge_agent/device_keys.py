"""The keys of the twin's devices in the password file of the gateway's own broker.

The file has other users too, whom somebody has added with `stocktide broker passwd`: they stay. Whom the twin has put
there leaves with it.

Invariant: the file is replaced as a whole, and only its owner may read it.
"""

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from edge_agent import database
from edge_agent.ledger import Ledger
from edge_agent.sql import statement
from wire_protocol.twin import DesiredState

KEYED: Final = "keyed_devices"  # whom the twin has put into the file, or is about to
RELOAD_S_MAX: Final = 10.0

log = structlog.get_logger("edge_agent.device_keys")


def note_keyed(ledger: Ledger, wanted: Mapping[str, str]) -> frozenset[str]:
    """Note whom the file is going to have, in a transaction of the ledger. Returns whom it may have had before.

    Both are noted until the next time: a gateway that dies before it has written the file must still know whom to take
    out.
    """
    had = frozenset(json.loads(database.meta(ledger.connection).get(KEYED, "[]")))
    ledger.connection.execute(statement("set_meta"), (KEYED, json.dumps(sorted(had | wanted.keys()))))
    return had


def wanted(state: DesiredState) -> dict[str, str]:
    """The hashes of the keys of a twin, by device."""
    return {name: device.key for name, device in state.devices.items() if device.key is not None}


@dataclass(frozen=True, slots=True)
class PasswordFile:
    """The broker's password file; `reload_command` makes the broker read it again."""

    path: Path
    reload_command: str | None = None

    def put(self, keys: Mapping[str, str], had: frozenset[str]) -> bool:
        """Have these devices with these hashes and none of the others of `had`. Returns whether anything changed.

        Raises:
            OSError: the file cannot be written; the old one stays.
        """
        users = self._users()
        new = {user: stored for user, stored in users.items() if user not in had} | dict(keys)
        if new == users:
            return False
        self._replace("".join(f"{user}:{stored}\n" for user, stored in new.items()))
        self._reload()
        log.info("device_keys_written", file=str(self.path), devices=len(keys))
        return True

    def _users(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        lines = (line.partition(":") for line in self.path.read_text(encoding="utf-8").splitlines())
        return {user: stored for user, found, stored in lines if found}

    def _replace(self, text: str) -> None:
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)  # makes it 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as partial:
                partial.write(text)
                partial.flush()
                os.fsync(partial.fileno())
            if self.path.exists() and os.geteuid() == 0:
                # The broker, which is another user, must still be able to read it.
                os.chown(name, self.path.stat().st_uid, self.path.stat().st_gid)
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _reload(self) -> None:
        if self.reload_command is None:
            return
        command = shlex.split(self.reload_command)
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=RELOAD_S_MAX)  # noqa: S603 - the operator's
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("broker_not_reloaded", command=self.reload_command, reason=str(error))

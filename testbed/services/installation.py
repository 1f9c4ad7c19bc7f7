"""Where the server programs are and how to start them: on the host, or in the Debian root.

Invariant: `scratch` has the same name inside the Debian root and outside, so a path in a configuration file means the
same to the test that writes it and to the server that reads it. No file system is mounted but the small disk of a test
that fills it (`disk`).
"""

import hashlib
import os
import pwd
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.services import debian_root
from testbed.services.errors import NotInstalled, ServicesError
from testbed.services.processes import SYSTEM_PATH

MOSQUITTO_MAJOR_MIN: Final = 2
_PASSWD_UID: Final = 2


@dataclass(frozen=True, slots=True)
class Installation:
    """Server programs and the account they run as.

    `postgres_bin` and `mosquitto` are paths inside `root`. `uid` and `gid` are None when the servers simply run as the
    caller; root must name an account because PostgreSQL refuses to run as root.
    """

    root: Path
    postgres_bin: Path
    mosquitto: Path
    scratch: Path
    uid: int | None
    gid: int | None

    def command(self, program: Path | str, *arguments: str) -> list[str]:
        """The command line that runs a program of this installation. It execs: the process id is the program's."""
        if self.uid is None:
            return [str(program), *arguments]
        return ["chroot", f"--userspec={self.uid}:{self.gid}", str(self.root), str(program), *arguments]

    def own(self, directory: Path) -> None:
        """Give a directory and what is in it to the account of the servers."""
        if self.uid is None or self.gid is None:
            return
        for place in (directory, *directory.rglob("*")):
            os.chown(place, self.uid, self.gid, follow_symlinks=False)

    def __str__(self) -> str:
        return "programs of this host" if self.root == Path("/") else f"Debian root {self.root}"


def current() -> Installation:
    """The installation that is ready to use, without building anything.

    Raises:
        NotInstalled: there is none.
    """
    if found := _on_host():
        return found
    if os.geteuid() == 0 and debian_root.path().is_dir():
        return _in_root(debian_root.path())
    raise NotInstalled(hint="Run `make services`.")


def provide() -> Installation:
    """The installation to use, built when the host has none.

    Raises:
        BuildFailed: it cannot be built here.
    """
    return _on_host() or _in_root(debian_root.build())


def _on_host() -> Installation | None:
    mosquitto = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
    postgres = _postgres_with_timescaledb()
    if not mosquitto or not postgres or _mosquitto_major(mosquitto) < MOSQUITTO_MAJOR_MIN:
        return None
    uid, gid = _host_account()
    scratch = Path("/var/tmp") / f"stocktide-services-{os.geteuid()}"  # noqa: S108 - owned by us and 0755, checked below
    _make_scratch(scratch)
    return Installation(Path("/"), postgres, Path(mosquitto), scratch, uid, gid)


def _host_account() -> tuple[int | None, int | None]:
    if os.geteuid() != 0:
        return None, None
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        account = pwd.getpwnam("nobody")
    return account.pw_uid, account.pw_gid


def _postgres_with_timescaledb() -> Path | None:
    """The directory of a host's `postgres` program whose extension directory has TimescaleDB."""
    in_path = shutil.which("postgres")
    versioned = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)
    for program in (*([Path(in_path)] if in_path else []), *versioned):
        pg_config = program.parent / "pg_config"
        if not pg_config.exists():
            continue
        asked = subprocess.run([str(pg_config), "--sharedir"], capture_output=True, text=True, check=True)
        if (Path(asked.stdout.strip()) / "extension" / "timescaledb.control").exists():
            return program.parent
    return None


def _mosquitto_major(program: str) -> int:
    # `mosquitto -h` prints its version first and exits with 3.
    shown = subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"mosquitto version (\d+)\.", shown)
    return int(found[1]) if found else 0


def _in_root(root: Path) -> Installation:
    binaries = next((root / "usr/lib/postgresql").glob("*/bin"))
    row = next(line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("postgres:"))
    uid, gid = (int(field) for field in row.split(":")[_PASSWD_UID : _PASSWD_UID + 2])
    key = hashlib.blake2b(str(root).encode(), digest_size=5).hexdigest()
    scratch = Path("/var/tmp") / f"stocktide-services-{key}"  # noqa: S108 - owned by us and 0755, checked below
    inside = root / scratch.relative_to("/")
    _make_scratch(inside)
    if not scratch.is_symlink():
        with suppress(FileExistsError):  # another process was quicker; checked next
            scratch.symlink_to(inside)
    if scratch.readlink() != inside:
        raise ServicesError(f"{scratch} belongs to somebody else.", hint=f"Remove it; it should lead to {inside}.")
    return Installation(root, Path("/") / binaries.relative_to(root), Path("/usr/sbin/mosquitto"), scratch, uid, gid)


def _make_scratch(directory: Path) -> None:
    directory.mkdir(mode=0o755, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
        raise ServicesError(f"{directory} belongs to somebody else.", hint="Remove it.")

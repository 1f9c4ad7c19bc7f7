"""Debian 13 roots, built once per user and shared: one with TimescaleDB and Mosquitto for hosts that have neither.

Invariant: a root under its final name is complete. It is built under a temporary name and renamed, under a lock.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.services.errors import BuildFailed

SUITE: Final = "trixie"
PACKAGES: Final = ("mosquitto", "postgresql-17-timescaledb")
BUILD_S_MAX: Final = 900
# The package's own cluster would never be used, and manuals are not read in here.
_OPTIONS: Final = (
    "--variant=minbase",
    "--mode=root",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    '--essential-hook=mkdir -p "$1/etc/postgresql-common"',
    '--essential-hook=echo "create_main_cluster = false" > "$1/etc/postgresql-common/createcluster.conf"',
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a root is made of; a change of the recipe is a change of the root's name.

    `options` go to mmdebstrap before `--include`.
    """

    name: str
    packages: tuple[str, ...]
    options: tuple[str, ...]

    def path(self) -> Path:
        """Where the root is, built or not."""
        recipe = "\n".join((SUITE, *self.packages, *self.options))
        return cache() / f"{self.name}-{SUITE}-{hashlib.blake2b(recipe.encode(), digest_size=5).hexdigest()}"

    def build(self) -> Path:
        """Build the root unless it is there already, and return its path.

        Raises:
            BuildFailed: not root, no Debian mirror is configured, or mmdebstrap failed.
        """
        root = self.path()
        if root.is_dir():
            return root
        if os.geteuid() != 0:
            raise BuildFailed("Only root can build and enter a Debian root.", hint=OTHER_WAYS)
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.with_suffix(".lock")):
            if not root.is_dir():
                self._build_locked(root)
        return root

    def _build_locked(self, root: Path) -> None:
        for stale in root.parent.glob(f"{root.name}.partial-*"):
            # An interrupted build may have left the host's /dev mounted below; never reach into another file system.
            subprocess.run(["rm", "-rf", "--one-file-system", str(stale)], check=False)
        log = root.with_suffix(".log")
        _require_mmdebstrap(log)
        mirror = _mirror(log)
        print(f"building a Debian {SUITE} root with {', '.join(self.packages)} (once, half a minute)", flush=True)  # noqa: T201 - progress for a person
        partial = Path(tempfile.mkdtemp(prefix=f"{root.name}.partial-", dir=root.parent))
        partial.chmod(0o755)
        command = ["mmdebstrap", *self.options, f"--include={','.join(self.packages)}", SUITE, str(partial), mirror]
        _run(command, log=log)
        partial.rename(root)


SERVICES: Final = Recipe("services", PACKAGES, _OPTIONS)


def path() -> Path:
    """Where the root of the test servers is, built or not."""
    return SERVICES.path()


def build() -> Path:
    """Build the root of the test servers unless it is there already, and return its path.

    Raises:
        BuildFailed: not root, no Debian mirror is configured, or mmdebstrap failed.
    """
    return SERVICES.build()


def cache() -> Path:
    """The folder of what is built or fetched once per user."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "stocktide"


OTHER_WAYS: Final = (
    "Install PostgreSQL with TimescaleDB and Mosquitto 2, or run `docker compose -f deploy/compose.yaml up -d` and set "
    "STOCKTIDE_TEST_DATABASE_URL and STOCKTIDE_TEST_MQTT_URL as that file says."
)


def _require_mmdebstrap(log: Path) -> None:
    if shutil.which("mmdebstrap") and Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        return
    if not shutil.which("apt-get"):
        raise BuildFailed("This host is not a Debian, so the test servers cannot be installed here.", hint=OTHER_WAYS)
    _run(["apt-get", "update"], log=log)
    wait_for_lock = ["-o", "DPkg::Lock::Timeout=300"]
    install = ["install", "-y", "--no-install-recommends", "mmdebstrap", "debian-archive-keyring"]
    _run(["apt-get", *wait_for_lock, *install], log=log)


def _mirror(log: Path) -> str:
    """The Debian mirror this host already uses: its administrator chose one that it can reach."""
    if not (mirror := _configured_mirror()):
        _run(["apt-get", "update"], log=log)
        mirror = _configured_mirror()
    if not mirror:
        raise BuildFailed("No Debian mirror is configured for apt on this host.", hint=OTHER_WAYS)
    return mirror


def _configured_mirror() -> str | None:
    form = "$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)"
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    rows = [line.split() for line in listing.splitlines()]
    # Codenames with a dash are the security and update suites, which live beside the main archive.
    mirrors = (row[3] for row in rows if row[0] == "Debian" and "-" not in row[1] and row[2] == "main")
    return next(mirrors, None)


def _run(command: list[str], *, log: Path) -> None:
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=quiet,
                check=False,
                timeout=BUILD_S_MAX,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildFailed(f"{command[0]} took more than {BUILD_S_MAX} s.", hint=f"See {log}.") from error
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise BuildFailed(f"{command[0]} failed:\n{tail}\n", hint=OTHER_WAYS)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

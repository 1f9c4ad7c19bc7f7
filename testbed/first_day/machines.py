"""Empty Debian machines that see each other and nobody else, on which the commands of a page are run.

Each is a Debian root, seen through a layer of its own in memory (overlayfs), in the namespaces of one process: when
that ends, all processes of the machines are gone, and so are the mounts. Debian's packages and the libraries from pip
were fetched before, by the host's own clients; the machines find them in their caches.

Invariant: a command of a page is run as it stands there. What stands in for the world outside is named here: systemctl
and scp, and pip's configuration.
"""

import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from testbed.services import debian_root
from testbed.services.debian_root import Recipe
from testbed.services.errors import BuildFailed, ServicesError

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).resolve().parent
PYTHON: Final = "3.13"  # Debian 13's
COMMANDS_S_MAX: Final = 120
FETCH_S_MAX: Final = 600
# What a Debian that its installer has made has, beside the minimum: systemd, Python, authorities.
PRESENT: Final = ("ca-certificates", "openssl", "python3", "systemd")
# What the pages install; the machines have no network, so apt finds these in its cache.
FETCHED: Final = ("curl", "mosquitto", "mosquitto-clients", "postgresql", "postgresql-17-timescaledb", "python3-venv")
BASE: Final = Recipe(
    "first-day",
    PRESENT,
    (
        "--variant=minbase",
        "--mode=root",
        "--skip=cleanup/apt",
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f'--customize-hook=chroot "$1" apt-get install -y --no-install-recommends --download-only {" ".join(FETCHED)}',
    ),
)
_SCP: Final = """#!/bin/sh
# Another machine's disk is mounted below /media: scp [-r] [root@]NAME.example.com:FILE PLACE
set -e
[ "$1" = -r ] && shift
host=${1%%:*}; host=${host#*@}
exec cp -r "/media/${host%%.*}${1#*:}" "$2"
"""
_ONCE: Final = 'Acquire::Retries "0";\n'  # there is no network: apt keeps to its cache at once
_NO_START: Final = "#!/bin/sh\nexit 101\n"  # a package's own start of its service: systemctl stands in for it


def is_possible() -> bool:
    """Whether machines can be made here: as root, with overlayfs and namespaces."""
    return (
        os.geteuid() == 0 and "overlay" in Path("/proc/filesystems").read_text() and shutil.which("unshare") is not None
    )


class CommandFailed(ServicesError):
    """A command of a page failed."""


@dataclass(slots=True)
class Machine:
    """One of the machines. What a block sets is there in the next block of the same account, as in one terminal."""

    name: str
    root: Path
    init: int
    _terminals: dict[str, str] = field(default_factory=dict)

    def run(self, commands: str, *, account: str = "root", typed: str = "", where: str = "") -> str:
        """Run commands in a shell, which ends at the first that fails; returns what they print.

        Raises:
            CommandFailed: one failed; the message has what was printed.
        """
        kept = f"{self._home(account)}/.terminal"
        script = f"set -aeuo pipefail\n[ ! -e {kept} ] || . {kept}\nset -x\n{commands}\n{{ set +x; }} 2>/dev/null\n"
        script += f"export -p | grep -E '^declare -x [A-Z][A-Z0-9_]*=' > {kept}\n"
        enter = ["nsenter", f"--target={self.init}", "--mount", "--net", "--pid", "--", "chroot", str(self.root)]
        shell = ["/usr/sbin/runuser", "-u", account, "--", "/bin/bash", "-lc", f"cd; {script}"]
        done = subprocess.run(
            [
                *enter,
                "/usr/bin/env",
                "-i",
                "TERM=dumb",
                "LANG=C.UTF-8",
                f"PATH={_PATH}",
                f"HOME={self._home(account)}",
                *shell,
            ],
            input=typed,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMANDS_S_MAX,
        )
        if done.returncode != 0:
            raise CommandFailed(
                f"{where or self.name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}\n{self.logs()}"
            )
        return done.stdout

    def logs(self) -> str:
        """The ends of the logs of the machine's units."""
        enter = ["nsenter", f"--target={self.init}", "--mount", "--pid", "--", "chroot", str(self.root)]
        tail = ["/bin/sh", "-c", "tail -n 12 /run/units/*.log 2>/dev/null"]
        return subprocess.run([*enter, *tail], capture_output=True, text=True, check=False).stdout

    def _home(self, account: str) -> str:
        return "/root" if account == "root" else "/var/lib/stocktide"


_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class World:
    """The machines by their names."""

    machines: dict[str, Machine]

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]


@contextmanager
def world(folder: Path, names: Sequence[str], wheels: Sequence[Path]) -> Iterator[World]:
    """Make machines, each with our wheels in /root; everything is gone afterwards.

    Raises:
        BuildFailed: the base or the libraries could not be fetched.
    """
    base, libraries = BASE.build(), _libraries()
    for name in names:
        _furnish(folder / name / "given", names, wheels)
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", sys.executable, str(HERE / "init.py")]
    with subprocess.Popen(
        [*command, str(base), str(folder), str(libraries), *names], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise BuildFailed("The machines could not be made.", hint="Can this host mount overlayfs?")
            [init] = psutil.Process(process.pid).children()
            yield World({name: Machine(name, folder / name / "root", init.pid) for name in names})
        finally:
            process.kill()
            process.wait()


def _furnish(given: Path, names: Sequence[str], wheels: Sequence[Path]) -> None:
    """What the machine has that its base has not: names of the others, stand-ins, pip's configuration, our wheels."""
    hosts = "127.0.0.1 localhost\n" + "".join(f"127.0.0.1 {name}.example.com\n" for name in names)
    pip = "[global]\nno-index = true\nfind-links = /var/cache/wheels\ndisable-pip-version-check = true\n"
    programs = {"systemctl": "#!/usr/bin/python3\n" + (HERE / "systemctl.py").read_text(), "scp": _SCP}
    texts = {f"usr/local/bin/{name}": text for name, text in programs.items()}
    texts |= {
        "usr/sbin/policy-rc.d": _NO_START,
        "etc/hosts": hosts,
        "etc/pip.conf": pip,
        "etc/apt/apt.conf.d/99once": _ONCE,
    }
    for place, text in texts.items():
        file = given / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755 if text.startswith("#!") else 0o644)
    (given / "root").mkdir(mode=0o700)
    for wheel in wheels:
        shutil.copy(wheel, given / "root" / wheel.name)


def _libraries() -> Path:
    """The folder of the libraries that the wheels need, fetched once for each list of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needs = sorted({*project["dependencies"], *extras["edge"], *extras["cloud"]})
    pins = ROOT / "constraints.txt"
    recipe = Recipe("libraries", (*needs, pins.read_text(encoding="utf-8")), (PYTHON, platform.machine()))
    folder = recipe.path()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with debian_root.locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _fetch(needs, pins, folder)
    return folder


def _fetch(needs: Sequence[str], pins: Path, folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    machine = platform.machine()
    platforms = [f"--platform={tag}_{machine}" for tag in ("manylinux2014", "manylinux_2_28", "manylinux_2_34")]
    kind = [f"--python-version={PYTHON}", "--implementation=cp", "--only-binary=:all:", *platforms]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--dest", str(partial)]
    done = subprocess.run(
        [*pip, *kind, "-c", str(pins), *needs], capture_output=True, text=True, check=False, timeout=FETCH_S_MAX
    )
    if done.returncode != 0:
        raise BuildFailed(f"pip download failed:\n{done.stderr}", hint="It needs the network once.")
    partial.rename(folder)

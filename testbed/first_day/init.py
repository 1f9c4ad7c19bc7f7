"""Process 1 of the world of a first day: mount the machines, say so, and reap what they leave behind.

Started by `machines` in namespaces of its own for mounts, processes and the network. Everything ends with it: processes
are killed, mounts vanish. The network has a loopback and nothing else, so no command of a page reaches anybody.

    init.py BASE WORK WHEELS NAME…
"""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def main() -> None:
    """Make everything, write a line, wait."""
    base, work, wheels, *names = sys.argv[1:]
    _raise_loopback()
    mount("--make-rprivate", "/")
    roots = {name: make(Path(base), Path(work), Path(wheels), name) for name in names}
    for name, root in roots.items():
        for other, disk in roots.items():
            if other != name:
                mount("--bind", str(disk), str(made(root / "media" / other)))
    print("ready", flush=True)  # noqa: T201 - machines waits for it
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, 1)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def make(base: Path, work: Path, wheels: Path, name: str) -> Path:
    """A machine: the base, what `machines` has put before it, and a layer in memory for what is written."""
    memory = made(work / name / "memory")
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(memory))
    layers = (
        f"lowerdir={work / name / 'given'}:{base},upperdir={made(memory / 'upper')},workdir={made(memory / 'work')}"
    )
    root = made(work / name / "root")
    mount("-t", "overlay", "overlay", "-o", layers, str(root))
    mount("-t", "proc", "proc", str(root / "proc"))
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(root / "run"))
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(root / "dev"))
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(made(root / "dev" / "shm")))
    for device in DEVICES:
        (root / "dev" / device).touch()
        mount("--bind", f"/dev/{device}", str(root / "dev" / device))
    (root / "dev" / "fd").symlink_to("/proc/self/fd")
    (root / "dev" / "stdin").symlink_to("/proc/self/fd/0")
    (root / "dev" / "stdout").symlink_to("/proc/self/fd/1")
    mount("--bind", str(wheels), str(made(root / "var" / "cache" / "wheels")))
    return root


def made(folder: Path) -> Path:
    """The folder, made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def mount(*arguments: str) -> None:
    """Mount something."""
    subprocess.run(["mount", *arguments], check=True)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(handle, SIOCGIFFLAGS, request)[:18])[1]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))


if __name__ == "__main__":
    main()

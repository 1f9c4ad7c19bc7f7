"""A disk of a few megabytes that a test can fill and free: a tmpfs, which only root can mount.

Invariant: nothing stays mounted: each mount has its unmount, and what a killed run has left is found by its path.
"""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from testbed.services.errors import ServicesError

BALLAST: Final = "ballast"
CHUNK_BYTES: Final = 64 * 1024


def can_mount() -> bool:
    """Whether disks can be mounted here."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


def memory_mb() -> int:
    """Memory of this machine that is free or can be freed, in megabytes."""
    values = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(values["MemAvailable"].split()[0]) // 1024


def mount(folder: Path, mb: int) -> None:
    """Give a folder that exists a file system of its own.

    Raises:
        ServicesError: this is not allowed here.
    """
    size = f"size={mb}m,mode=0700"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "stocktide-test", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ServicesError(f"A small disk cannot be mounted: {done.stderr.strip()}", hint="Only root can mount.")


def unmount(folder: Path) -> None:
    """Take the file system away, with what is in it; a folder without one is left alone."""
    if folder.is_mount():
        # Lazily: a process that was killed a moment ago may still hold a file.
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def fill(folder: Path) -> int:
    """Write a ballast file until nothing more fits. Returns its size in bytes."""
    with (folder / BALLAST).open("ab", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(CHUNK_BYTES))
    return (folder / BALLAST).stat().st_size


def free(folder: Path) -> None:
    """Remove the ballast."""
    (folder / BALLAST).unlink(missing_ok=True)

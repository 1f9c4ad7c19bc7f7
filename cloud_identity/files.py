"""Files of an authority: replaced as a whole, with their mode from the first byte on, whatever the umask is.

Invariant: a process that is killed leaves at most something whose name begins with a dot.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ABOVE_MODE: Final = 0o755


def make_folder(folder: Path, *, mode: int) -> None:
    """Make a folder with this mode, and those above it that are missing, which only their owner can write."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        wanted = mode if place == folder else ABOVE_MODE
        place.mkdir(mode=wanted, exist_ok=True)
        place.chmod(wanted)
        sync(place.parent)


def write(file: Path, content: bytes, *, mode: int) -> None:
    """Replace a file as a whole, with this mode from its first byte on."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # makes it 0600
    try:
        with os.fdopen(handle, "wb") as partial:
            os.fchmod(partial.fileno(), mode)
            partial.write(content)
            partial.flush()
            os.fsync(partial.fileno())
        Path(name).replace(file)
        sync(file.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync(folder: Path) -> None:
    """Have a folder's names on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that would change what is in it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

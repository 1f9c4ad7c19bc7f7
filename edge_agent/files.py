"""Files at the edge: made whole or not at all, readable by their owner and group alone, locked by their one real name.

Invariant: what another process sees under a file's name is all of it; a process that is killed leaves at most a file
whose name begins with a dot, which the next attempt replaces. Invariant: modes do not depend on the umask, other than
that it may take more away.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Final

FOLDER_MODE: Final = 0o750
FILE_MODE: Final = 0o640
LOCK_LOOK_S: Final = 0.02
PARTS: Final = ("", "-wal", "-shm", "-journal")
"""What SQLite adds to a file's name for the files beside it."""


def make_folder(folder: Path, mode: int = FOLDER_MODE) -> None:
    """Make a folder and the ones above it that are missing; none of them is open to all users.

    Raises:
        OSError: it cannot be made, or there is something else of its name.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        # Python's `parents=True` gives the folders above the mode 0777.
        place.mkdir(mode=mode if place == folder else FOLDER_MODE, exist_ok=True)
        sync(place.parent)
    if not folder.is_dir():
        raise NotADirectoryError(20, "There is a file of this name", str(folder))


def write_whole(file: Path, content: bytes, *, mode: int) -> None:
    """Write a file that is whole or not there, with its mode from its first byte on.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    partial = partial_of(file)
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as writing:
        writing.write(content)
        writing.flush()
        os.fsync(writing.fileno())
    partial.replace(file)
    sync(file.parent)


def partial_of(file: Path) -> Path:
    """The name that a file has until it is whole."""
    return file.with_name(f".{file.name}.new")


def sync(place: Path) -> None:
    """Have a folder's names, or a file's content, on the disk."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def real(path: Path) -> Path:
    """The one name of a file: a symbolic link leads to the same lock and the same log as the file itself."""
    return path.resolve()


def lock_path(path: Path) -> Path:
    """The file that is locked by the agent that runs on a ledger, and by the process that makes one."""
    path = real(path)
    return path.with_name(path.name + ".lock")


@contextmanager
def locked(lock: Path, *, wait_s: float = 0.0) -> Iterator[IO[str]]:
    """Hold a lock file; the kernel lets it go when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it still, after `wait_s` seconds.
        OSError: it cannot be made or opened.
    """
    with os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE), "r+") as file:
        _take(file.fileno(), wait_s)
        yield file


@contextmanager
def locked_folder(folder: Path, *, wait_s: float) -> Iterator[None]:
    """Hold a folder against other processes that would change what is in it; as `locked`."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _take(handle, wait_s)
        yield
    finally:
        os.close(handle)


def _take(handle: int, wait_s: float) -> None:
    ends_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= ends_s:
                raise
            time.sleep(LOCK_LOOK_S)
        else:
            return


def set_aside(path: Path) -> Path | None:
    """Move a ledger and its log out of the way; where to. None when there is nothing of it. Done again, it goes on.

    Raises:
        BlockingIOError: an agent runs on it.
        OSError: it cannot be moved.
    """
    path = real(path)
    if not any(path.with_name(path.name + suffix).exists() for suffix in PARTS):
        return None
    with locked(lock_path(path)):
        number = next(n for n in count(1) if not path.with_name(f"{path.name}.aside-{n}").exists())
        if not path.exists() and number > 1:
            number -= 1  # killed after the file was moved, and before its log was
        aside = path.with_name(f"{path.name}.aside-{number}")
        # The file first: a log without its file is noticed, a file without its log is an older one.
        for suffix in PARTS:
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        sync(path.parent)
    return aside


def holder(path: Path) -> int | None:
    """The process id of the agent that runs on this ledger; None when none does."""
    try:
        with lock_path(path).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or os.getpid())
    except (FileNotFoundError, PermissionError, ValueError):
        return None
    return None

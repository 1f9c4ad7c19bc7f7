"""SQLite's write-ahead log as it lies on the disk: whether commits in it would be lost without a word.

After a crash SQLite takes the log up to its first bad frame; commits behind that are dropped and nobody is informed
(https://sqlite.org/fileformat2.html#walformat, section 4.3). A frame that is bad because the power went in the middle
of a commit is the last there is; a bad frame with commits behind it was good once, because each commit is on the disk
before the next begins (`synchronous=FULL`), so the disk has changed it.
"""

import struct
import time
from enum import Enum
from itertools import count, pairwise
from pathlib import Path
from typing import Final

from edge_agent import files
from edge_agent.errors import DiskFailing, LedgerCorrupt

LOOKS: Final = 2
LOOK_S: Final = 0.05
DAMAGED: Final = ".damaged-"
HEADER: Final = struct.Struct(">8I")
FRAME: Final = struct.Struct(">6I")
PAGE_SIZES: Final = frozenset(1 << bit for bit in range(9, 17))
MAGIC: Final = 0x377F0682  # the last bit says in which order of bytes checksums are made


class LogState(Enum):
    """What SQLite would do with a log after a crash."""

    SOUND = "all commits are taken"
    TORN = "the last commit is dropped: the power went while it was written, or it was damaged"
    DAMAGED = "commits are dropped that were on the disk"


def require_sound(log: Path) -> None:
    """Show nothing of a ledger while bookings may be missing that are in its log.

    Raises:
        LedgerCorrupt: SQLite would drop commits.
    """
    state = _state(log)
    if state is LogState.DAMAGED:
        raise LedgerCorrupt(
            f"The ledger's log is damaged, and bookings in it cannot be read: {state.value}.",
            hint="Start the agent (stocktide edge run): it keeps the log, goes on from the last good booking, and "
            "fetches from the cloud what the cloud has.",
        )
    if state is LogState.TORN:
        raise LedgerCorrupt(
            f"The end of the ledger's log cannot be read: {state.value}.",
            hint="See whether your last booking is there, after starting the agent (stocktide edge run) or, without "
            "one, after: stocktide edge ledger rebuild",
        )


def keep(log: Path) -> Path | None:
    """Copy a damaged log to where it is not overwritten; None when it is sound, or torn as a power cut does it.

    Raises:
        DiskFailing: it cannot be copied.
    """
    try:
        if _state(log) is not LogState.DAMAGED:
            return None
        kept = next(place for n in count(1) if not (place := log.with_name(f"{log.name}{DAMAGED}{n}")).exists())
        files.write_whole(kept, log.read_bytes(), mode=files.FILE_MODE)
    except OSError as error:
        raise DiskFailing(f"{log} is damaged, and cannot be copied: {error.strerror}.") from error
    return kept


def kept(ledger: Path) -> list[Path]:
    """Damaged logs of a ledger that were kept, oldest first."""
    ledger = files.real(ledger)
    return sorted(ledger.parent.glob(f"{ledger.name}-wal{DAMAGED}*"))


def _state(log: Path) -> LogState:
    """As it is when nobody writes to it: another command may be at it just now."""
    found = examine(log)
    for _ in range(LOOKS):
        if found is LogState.SOUND:
            break
        time.sleep(LOOK_S)
        found = examine(log)
    return found


def examine(log: Path) -> LogState:
    """Look at a log that no process has open; at one that is written to meanwhile the answer means nothing.

    Raises:
        OSError: it cannot be read.
    """
    content = log.read_bytes() if log.exists() else b""
    if len(content) <= HEADER.size + FRAME.size:
        return LogState.SOUND
    magic, _, page_bytes, _, salt_1, salt_2, *stated = HEADER.unpack_from(content)
    order = ">" if magic & 1 else "<"
    sums = _checksum(order, content[:24], (0, 0))
    if magic & ~1 != MAGIC or sums != tuple(stated) or page_bytes not in PAGE_SIZES:
        return LogState.DAMAGED if any(content[HEADER.size :]) else LogState.SOUND
    size = FRAME.size + page_bytes
    starts = range(HEADER.size, len(content) - size + 1, size)
    good = 0
    for start in starts:
        page, _, *salts, one, two = FRAME.unpack_from(content, start)
        sums = _checksum(order, content[start : start + 8] + content[start + FRAME.size : start + size], sums)
        if not page or salts != [salt_1, salt_2] or sums != (one, two):
            break
        good += 1
    return _behind(content, list(starts)[good:], (salt_1, salt_2))


def _behind(content: bytes, starts: list[int], salts: tuple[int, int]) -> LogState:
    """What the frames from the first bad one on are: leavings of an earlier round, or commits of this one."""
    ours = []
    for start in starts:
        _, pages_after, *found, _, _ = FRAME.unpack_from(content, start)
        if found[0] == salts[0] or found[1] == salts[1]:  # both differ in a frame of an earlier round
            ours.append(bool(pages_after))
    if any(is_commit for is_commit, _next in pairwise(ours)):
        return LogState.DAMAGED
    return LogState.TORN if any(ours) else LogState.SOUND


def _checksum(order: str, content: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    one, two = sums
    words = iter(struct.unpack(f"{order}{len(content) // 4}I", content))
    for first, second in zip(words, words, strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two

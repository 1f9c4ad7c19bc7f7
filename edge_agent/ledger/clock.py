"""Where the gateway's time comes from: the wall clock, and the boot with its monotonic clock.

A boot id and the monotonic clock together give the true time of an entry later, when the wall clock turns out to have
been wrong. Both are properties of the machine, not of the process, so the agent and the command line agree on them.
"""

import secrets
import time
import uuid
from pathlib import Path
from typing import NamedTuple, Protocol

from wire_protocol import names

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """What the ledger needs to know of time; tests turn one by hand."""

    boot: str

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        ...

    def mono_ms(self) -> int:
        """Milliseconds since the boot, suspended time included."""
        ...


class Instant(NamedTuple):
    """A moment by all clocks of a gateway: the boot with its monotonic clock, and what the wall clock showed."""

    boot: str
    mono_ms: int
    wall_ms: int


def instant(clock: Clock) -> Instant:
    """This moment."""
    return Instant(clock.boot, clock.mono_ms(), clock.now_ms())


class SystemClock:
    """The machine's clocks."""

    def __init__(self) -> None:
        self.boot = _boot_ulid()

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def mono_ms(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def new_epoch(clock: Clock) -> str:
    """The id of a new ledger."""
    return names.ulid(clock.now_ms(), secrets.token_bytes(10))


def _boot_ulid() -> str:
    """The kernel's boot id in the spelling of a ULID (both are 128 bits)."""
    number = uuid.UUID(_BOOT_ID.read_text().strip()).int
    return names.ulid(number >> 80, (number & (1 << 80) - 1).to_bytes(10))

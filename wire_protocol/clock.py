"""Hybrid logical clock: 48 bits of milliseconds, 16 bits of counter, in one integer.

A reading never repeats and never goes back, whatever the wall clock does, and stays close to it when it behaves
(Kulkarni et al., "Logical Physical Clocks and Consistent Snapshots in Globally Distributed Databases", 2014). The
ledger orders entries by it, so order survives clock steps.

Invariant: nothing here reads a clock; the wall time is an argument.
"""

from typing import Final

from wire_protocol.errors import WireError

COUNTER_BITS: Final = 16
HLC_MAX: Final = (1 << 63) - 1  # stored in signed 64-bit columns; reached in the year 6429


class ClockExhausted(WireError):
    """The hybrid logical clock cannot advance further: a clock reading was thousands of years in the future."""


def pack(wall_ms: int, counter: int = 0) -> int:
    """The clock reading of a Unix time in milliseconds and a counter (0 to 65,535)."""
    return wall_ms << COUNTER_BITS | counter


def wall_ms(hlc: int) -> int:
    """The Unix time in milliseconds inside a clock reading."""
    return hlc >> COUNTER_BITS


def counter(hlc: int) -> int:
    """The counter inside a clock reading."""
    return hlc & (1 << COUNTER_BITS) - 1


def tick(last: int, now_ms: int) -> int:
    """The next reading for a local event.

    Args:
        last: the last reading given out, 0 for none.
        now_ms: the wall clock, Unix time in milliseconds; may have stepped back.

    When the wall clock stands or has stepped back, the counter advances; a full counter carries into the next
    millisecond, so more than 65,536 events in one millisecond still get distinct, ordered readings.
    """
    reading = max(pack(now_ms), last + 1)
    if reading > HLC_MAX:
        raise ClockExhausted
    return reading


def observe(last: int, remote: int, now_ms: int, *, ahead_ms_max: int) -> int:
    """The reading after hearing of a remote one, so that later local events are ordered after it.

    A remote reading more than `ahead_ms_max` ahead of the wall clock is not followed: one gateway with a clock in the
    future must not drag a whole site along.
    """
    if wall_ms(remote) > now_ms + ahead_ms_max:
        remote = 0
    return tick(max(last, remote), now_ms)

"""When an entry happened, as well as its frame tells: one rule for the cloud and for every gateway of a site.

Invariant: what is not believed is bounded and kept beside, never dropped.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from wire_protocol import clock
from wire_protocol.entries import Count, Movement, Reading

AGE_MS_MAX: Final = 90 * 24 * 3600 * 1000
AHEAD_MS_MAX: Final = 5 * 60 * 1000
CLAIM_MS_LIMIT: Final = 1 << 62
ON_TIME_MS: Final = 1_000  # what is recorded so soon after it happened keeps the order of its arrival


class TimeDoubt(StrEnum):
    """Why a gateway did not believe when a device's event happened, and placed it at its arrival."""

    UNPROVEN = "unproven"
    """The device's clock shows another time than the gateway's, and the message does not say how old the event is."""
    TOO_OLD = "too-old"
    """It is older than events may be; a counter that began again looks like this."""


class DeviceTime(NamedTuple):
    """How long before its arrival an event happened, as far as that is believed; and why it is not."""

    age_ms: int
    doubt: TimeDoubt | None = None


_JUST_NOW: Final = DeviceTime(0)
_UNPROVEN: Final = DeviceTime(0, TimeDoubt.UNPROVEN)
_TOO_OLD: Final = DeviceTime(0, TimeDoubt.TOO_OLD)


class TrueTime(NamedTuple):
    """When an entry happened, as well as it is known; `claimed_ms` only when that had to be bounded."""

    at_ms: int
    claimed_ms: int | None


def true_time(entry: Movement | Count | Reading, boots: Mapping[str, int], received_ms: int) -> TrueTime:
    """When an entry happened, bounded to [received - 90 days, received + 5 minutes].

    Where an acknowledgement gave the cloud's time during the entry's boot, that boot's monotonic clock says when it
    was; the wall clock may have stood in 1970 or been set twice since. Otherwise the entry's clock is all there is.

    Args:
        entry: the entry.
        boots: the frame header's: when each boot's monotonic clock was zero, Unix milliseconds.
        received_ms: when the cloud received the frame.
    """
    return bounded(claimed_ms(entry, boots), received_ms)


def claimed_ms(entry: Movement | Count | Reading, boots: Mapping[str, int]) -> int:
    """When an entry happened, as its frame tells; not bounded yet."""
    zero_ms = boots.get(entry.boot)
    return clock.wall_ms(entry.hlc) if zero_ms is None else zero_ms + entry.mono_ms - (entry.late_ms or 0)


def bounded(claimed: int, received_ms: int) -> TrueTime:
    """A claimed time within what is believed of a frame that was received at a time."""
    if received_ms - AGE_MS_MAX <= claimed <= received_ms + AHEAD_MS_MAX:
        return TrueTime(claimed, None)
    at_ms = min(max(claimed, received_ms - AGE_MS_MAX), received_ms + AHEAD_MS_MAX)
    return TrueTime(at_ms, min(max(claimed, -CLAIM_MS_LIMIT), CLAIM_MS_LIMIT))


def device_time(age_ms: int | None, at_ms: int | None, received_ms: int, age_ms_max: int) -> DeviceTime:
    """How old an event was when it arrived.

    The age that the device measured with a clock that runs on is believed up to a bound: no wall clock, neither the
    device's nor the gateway's, is part of it. The device's wall clock alone (`at_ms`) proves nothing: three hours ago
    is a late event or a wrong time zone.

    Args:
        age_ms: the age by the device's monotonic clock at this sending; None from a device that does not know it.
        at_ms: what the device's wall clock showed when it happened.
        received_ms: the gateway's time at the arrival, Unix milliseconds.
        age_ms_max: the age up to which a device is believed.
    """
    if age_ms is not None:
        return DeviceTime(age_ms) if age_ms <= age_ms_max else _TOO_OLD
    if at_ms is not None and abs(received_ms - at_ms) > AHEAD_MS_MAX:
        return _UNPROVEN
    return _JUST_NOW

"""When an entry happened, as well as its frame tells: one rule for the cloud and for every gateway of a site.

Invariant: what is not believed is bounded and kept beside, never dropped.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from wire_protocol import clock
from wire_protocol.entries import Count, Movement, Reading

AGE_MS_MAX: Final = 90 * 24 * 3600 * 1000
AHEAD_MS_MAX: Final = 5 * 60 * 1000
CLAIM_MS_LIMIT: Final = 1 << 62


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
    return clock.wall_ms(entry.hlc) if zero_ms is None else zero_ms + entry.mono_ms


def bounded(claimed: int, received_ms: int) -> TrueTime:
    """A claimed time within what is believed of a frame that was received at a time."""
    if received_ms - AGE_MS_MAX <= claimed <= received_ms + AHEAD_MS_MAX:
        return TrueTime(claimed, None)
    at_ms = min(max(claimed, received_ms - AGE_MS_MAX), received_ms + AHEAD_MS_MAX)
    return TrueTime(at_ms, min(max(claimed, -CLAIM_MS_LIMIT), CLAIM_MS_LIMIT))

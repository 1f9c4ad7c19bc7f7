"""The hybrid logical clock: never repeats, never goes back, follows the wall clock, cannot be dragged ahead."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire_protocol import clock

times_ms = st.integers(0, (1 << 47) - 1)


@given(st.lists(times_ms, min_size=1))
def test_readings_rise_whatever_the_wall_clock_does(walls: list[int]) -> None:
    """Two entries with equal or falling clock would be ordered by chance."""
    readings, last = [], 0
    for now_ms in walls:
        last = clock.tick(last, now_ms)
        readings.append(last)
    assert all(before < after for before, after in itertools.pairwise(readings))
    assert clock.wall_ms(last) >= max(walls)


@given(times_ms, st.integers(0, 65_535))
def test_pack_and_its_halves_agree(now_ms: int, low: int) -> None:
    """Frames carry the halves separately."""
    assert (clock.wall_ms(clock.pack(now_ms, low)), clock.counter(clock.pack(now_ms, low))) == (now_ms, low)


def test_a_full_counter_carries_into_the_next_millisecond() -> None:
    """More than 65,536 events in a millisecond must still be distinct and ordered."""
    full = clock.pack(1_000, 65_535)
    assert clock.tick(full, 1_000) == clock.pack(1_001)


def test_a_remote_clock_far_ahead_is_not_followed() -> None:
    """One gateway with a clock years ahead must not drag the whole site into the future."""
    near, far = clock.pack(10_500), clock.pack(10**9)
    assert clock.wall_ms(clock.observe(0, near, 10_000, ahead_ms_max=1_000)) == 10_500
    assert clock.wall_ms(clock.observe(0, far, 10_000, ahead_ms_max=1_000)) == 10_000


def test_the_end_of_the_clock_is_an_error_not_a_wrap() -> None:
    """A wrapped clock would reorder everything after it."""
    with pytest.raises(clock.ClockExhausted):
        clock.tick(clock.HLC_MAX, 0)

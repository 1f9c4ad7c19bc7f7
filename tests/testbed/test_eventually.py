"""Waiting for a fact: what it returns, and what it says when the fact does not come."""

import asyncio
from functools import partial

import pytest

from testbed.eventually import NeverHappened, eventually, eventually_async


def test_the_value_that_was_waited_for_is_returned() -> None:
    """Who waits for a row wants the row, and should not have to read it a second time."""
    seen = iter([None, 0, "", "there"])
    assert eventually(lambda: next(seen), poll_s=0) == "there"


def test_a_failure_says_what_was_waited_for_and_what_was_seen_last() -> None:
    """A bare time-out in CI's log would have to be reproduced before anybody knew what was missing."""
    rows = ["one", "two"]
    with pytest.raises(NeverHappened, match=r"len\(rows\) > 2.*last seen: False; rows \['one', 'two'\]"):
        eventually(lambda: len(rows) > 2, within_s=0, explain=lambda: f"rows {rows}")
    with pytest.raises(NeverHappened, match=r"within 0 s: three rows; last seen: 0"):
        eventually(lambda: 0, "three rows", within_s=0)
    with pytest.raises(NeverHappened, match="partial"):
        eventually(partial(int, 0), within_s=0)


def test_a_fact_is_looked_at_even_when_the_limit_has_passed() -> None:
    """A machine that did nothing else for a minute must not fail a test whose fact is true by then."""
    assert eventually(lambda: True, within_s=-1)


async def test_the_loop_goes_on_while_a_coroutine_waits() -> None:
    """What is waited for is often done by another task of the same loop."""
    happened = asyncio.Event()

    async def look() -> bool:
        return happened.is_set()

    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(eventually_async(each), name="waits") for each in (happened.is_set, look)]
        happened.set()
    assert [task.result() for task in waiting] == [True, True]


async def test_a_coroutine_that_waits_in_vain_says_so() -> None:
    """As for a thread."""
    with pytest.raises(NeverHappened, match="last seen: 0"):
        await eventually_async(lambda: 7 - 7, within_s=0)

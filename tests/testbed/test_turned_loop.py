"""The clock turned by hand: an hour takes a moment, in order, and nothing that still works is overtaken."""

import asyncio

from testbed.turned_loop import now_s, pass_time, turned


@turned
async def test_time_passes_at_once_and_in_order() -> None:
    """A pace that is measured on this clock must be the pace that the code keeps."""
    done = []

    async def tick(name: str, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            done.append((round(now_s()), name))

    ticking = [asyncio.create_task(tick(name, every_s), name=name) for name, every_s in (("a", 1_800), ("b", 2_500))]
    await pass_time(5_000.5)
    for task in ticking:
        task.cancel()
    assert done == [(1_800, "a"), (2_500, "b"), (3_600, "a"), (5_000, "b")]


@turned
async def test_the_clock_stands_still_while_a_thread_works() -> None:
    """A database that takes its time on a busy machine must not look as if it had not answered for an hour."""
    async with asyncio.timeout(60):
        assert await asyncio.to_thread(sum, range(1_000_000)) > 0
    assert now_s() == 0


@turned
async def test_a_limit_that_passes_is_one() -> None:
    """Time-outs must come, or nothing could be tested that waits for one."""
    try:
        async with asyncio.timeout(3_600):
            await asyncio.Event().wait()
    except TimeoutError:
        assert round(now_s()) == 3_600
    else:
        raise AssertionError

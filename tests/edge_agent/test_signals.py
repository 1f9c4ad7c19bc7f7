"""Signals between the agent's parts: a receiver that fails must not stop a scan's receipt, nor a thread the loop."""

import asyncio
import threading

from edge_agent.signals import Signal
from testbed.eventually import eventually_async


def test_a_receiver_that_fails_stops_neither_the_sender_nor_the_others() -> None:
    """The writer's thread sends after each commit: with it would end the agent."""
    signal: Signal[[int]] = Signal()
    seen = list[int]()

    def fail(_number: int) -> None:
        raise RuntimeError("a defect")

    signal.connect(seen.append)
    signal.connect(fail)
    signal.connect(seen.append)
    signal.send(7)
    assert seen == [7, 7]


async def test_a_receiver_in_a_loop_is_called_in_the_loops_thread() -> None:
    """An event of the loop that is set in another thread wakes nobody."""
    signal: Signal[[str]] = Signal()
    seen = list[tuple[str, int]]()
    signal.connect_in(asyncio.get_running_loop(), lambda word: seen.append((word, threading.get_ident())))
    await asyncio.to_thread(signal.send, "committed")
    await eventually_async(lambda: seen)
    assert seen == [("committed", threading.get_ident())]


def test_a_loop_that_has_ended_is_no_error() -> None:
    """The entries are safe in the file; the agent's last commit comes after its loop."""
    signal: Signal[[]] = Signal()
    loop = asyncio.new_event_loop()
    signal.connect_in(loop, lambda: None)
    loop.close()
    signal.send()

"""Each fault does what its name says, from its seed alone, and never touches a payload."""

import random
from collections import Counter
from collections.abc import Sequence

from firmware_sim.faults.radio import Delay, Duplicate, RadioChannel, Reorder, Silence, Stage
from firmware_sim.firmware.event_queue import Outgoing
from firmware_sim.firmware.windows import Window, Windows
from wire_protocol.topics import Channel


def _messages(count: int) -> list[Outgoing]:
    return [Outgoing(n * 1_000, Channel.DEVICE_EVENT, b"%d" % n) for n in range(count)]


def _arrivals(stages: Sequence[Stage], messages: list[Outgoing], seed: int = 1) -> list[tuple[int, bytes]]:
    """When each message arrives, with time advancing from message to message and then to the end."""
    radio = RadioChannel(stages, random.Random(seed))
    arrived = []
    for message in messages:
        radio.push([message])
        arrived += [(message.at_ms, late.payload) for late in radio.due(message.at_ms)]
    while (at_ms := radio.next_ms()) is not None:
        arrived += [(at_ms, late.payload) for late in radio.due(at_ms)]
    assert radio.is_empty
    return arrived


def test_clean_air_changes_nothing() -> None:
    """Without faults a device is heard at once and in order."""
    assert _arrivals([], _messages(5)) == [(message.at_ms, message.payload) for message in _messages(5)]


def test_duplicates_come_again() -> None:
    """Every payload arrives, some twice, none altered."""
    counts = Counter(payload for _, payload in _arrivals([Duplicate(0.5, 3_000)], _messages(200)))
    assert set(counts) == {message.payload for message in _messages(200)}
    assert 60 < sum(count == 2 for count in counts.values()) < 140
    assert max(counts.values()) == 2


def test_delays_make_late_and_lose_nothing() -> None:
    """A late message is late by at most the bound."""
    messages = _messages(200)
    sent = {message.payload: message.at_ms for message in messages}
    late = {payload: at_ms - sent[payload] for at_ms, payload in _arrivals([Delay(0.5, 10_000)], messages)}
    assert late.keys() == sent.keys()
    assert max(late.values()) <= 10_000 + 1_000  # looked at once a second
    assert sum(delay > 0 for delay in late.values()) > 50


def test_reorder_swaps_neighbours() -> None:
    """With rate 1 every other message is overtaken by the next one."""
    order = [payload for _, payload in _arrivals([Reorder(1.0, 60_000)], _messages(6))]
    assert order == [b"1", b"0", b"3", b"2", b"5", b"4"]


def test_reorder_lets_the_last_one_go() -> None:
    """A message that nobody overtakes must not be held forever."""
    assert _arrivals([Reorder(1.0, 5_000)], _messages(1)) == [(5_000, b"0")]


def test_silence_swallows_what_is_said_meanwhile() -> None:
    """The device is not told: its messages are simply not heard."""
    heard = [payload for _, payload in _arrivals([Silence(Windows([Window(2_000, 4_000)]))], _messages(6))]
    assert heard == [b"0", b"1", b"4", b"5"]


def test_the_seed_alone_decides() -> None:
    """A failure that its seed does not replay cannot be hunted down."""

    def stages() -> list[Stage]:
        return [Duplicate(0.3, 2_000), Delay(0.3, 9_000), Reorder(0.3, 4_000)]

    first = _arrivals(stages(), _messages(300), seed=5)
    assert first == _arrivals(stages(), _messages(300), seed=5)
    assert first != _arrivals(stages(), _messages(300), seed=6)


def test_the_air_is_bounded() -> None:
    """A device that resends into a delay for hours must not eat the machine's memory."""
    radio = RadioChannel([Delay(1.0, 10**9)], random.Random(1))
    radio.push(_messages(10_050))
    assert radio.lost == 50

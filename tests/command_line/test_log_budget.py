"""What is logged: broken when one sender can fill the disk with lines, or what was left out is nowhere said."""

import pytest
import structlog

from command_line.log_budget import LogBudget, Sparing


def test_a_few_lines_of_a_key_in_each_window_and_then_their_number() -> None:
    """The next window's first line says how many were left out; other keys are not concerned."""
    budget = LogBudget(lines_max=2, window_s=60)
    assert [budget.admit("a", at_s) for at_s in (0.0, 1.0, 2.0, 3.0, 59.0)] == [0, 0, None, None, None]
    assert budget.admit("b", 3.0) == 0
    assert [budget.admit("a", at_s) for at_s in (60.0, 61.0, 62.0)] == [3, 0, None]


def test_what_is_remembered_is_bounded() -> None:
    """A million gateways make no more keys than there is room for."""
    budget = LogBudget(keys_max=10)
    for number in range(1_000):
        budget.admit(number, 0.0)
    assert len(budget._windows) == 10


def test_lines_about_a_sender_are_spared_and_others_are_not() -> None:
    """By event and sender, so that a flood of one thing hides no other; the next window says what was left out."""
    now_s = [0.0]
    sparing = Sparing(("device", "topic"), structlog.DropEvent, LogBudget(lines_max=1), lambda: now_s[0])
    refused = {"event": "refused", "device": "a", "topic": "t"}
    assert sparing(None, "warning", refused) == refused
    for again in (refused, {**refused, "topic": "u"}):
        with pytest.raises(structlog.DropEvent):
            sparing(None, "warning", again)
    others: list[dict[str, str]] = [{"event": "x", "device": "a"}, {"event": "refused", "topic": "a/b"}]
    for event in others:
        assert sparing(None, "warning", event) == event
    for _ in range(10):
        assert sparing(None, "info", {"event": "batch", "gateway": "a"}) == {"event": "batch", "gateway": "a"}
    now_s[0] = 60.0
    assert sparing(None, "warning", refused) == {**refused, "left_out": 2}

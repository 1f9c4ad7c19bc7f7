"""Two ways to read a frame. Broken when the quick one takes what the exact one refuses, or makes other entries."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_store.merge import frame_entries
from cloud_store.merge.arrivals import ArrivedFrame
from cloud_store.merge.frame_entries import FrameEntries, MovementColumns, Unusual
from tests.cloud_store.histories import BOOT, NOW_MS, Chain, columns, count, movement
from wire_protocol import clock, frames, names, times
from wire_protocol.entries import MONOTONIC_MS_MAX, QUANTITY_MAX, MovementKind, default_route
from wire_protocol.errors import InvalidEntry

OTHER_BOOT = names.ulid(NOW_MS + 1, bytes(10))
# What stands at the edges of types, texts and numbers, and what Python takes for equal to something good.
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 1, 1.0, 1e300, float("nan"), 10**12, 10**12 + 1, 1 << 47, 1 << 63, 10**400, -(10**400)),
    *("", " ", "x", "x ", "x\n", "x\ny", "a\0b", "\ud800", "é", "e\u0301", "\u00a0x", "x\u2028", "x" * 64, "x" * 65),
    *("@supplier", "@adjust", "@transit:x", "@nowhere", "count", "receive", "move", "reading", BOOT, OTHER_BOOT),
    *([], [1], {}, {"t": 1.0}),
]
TEXTS = st.one_of(
    st.sampled_from(["screw", "A-1", "A-2", "bolt M8×20", "Regal 3"]),
    st.text(min_size=1, max_size=12).filter(lambda text: names.misspelt(text) is None and text[0] != "@"),
)


def rows_of(found: MovementColumns) -> list[dict[str, Any]]:
    """Movements one by one, without what is absent."""
    made: list[dict[str, Any]] = [{} for _ in found.kinds]
    for field in fields(found):
        column = getattr(found, field.name)
        if column is not None:
            values = column.tolist() if isinstance(column, np.ndarray) else column
            for row, value in zip(made, values, strict=True):
                if value is not None:
                    row[field.name] = value
    return made


def exactly(frame: ArrivedFrame) -> FrameEntries:
    """What the exact way finds."""
    return frame_entries.one_by_one(frame.frame, frame.validated())


def require_same(frame: ArrivedFrame) -> bool:
    """Assert that both ways agree, if the quick one takes the frame. Returns whether it does."""
    try:
        quick = frame_entries.by_columns(frame.frame)
    except Unusual:
        return False
    exact = exactly(frame)
    assert rows_of(quick.movements) == rows_of(exact.movements)
    assert quick.others == exact.others
    assert list(quick.problems) == list(exact.problems)
    assert exact.unreadable is None
    return True


@st.composite
def entry_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Good rows of a ledger, as a healthy gateway writes them; now and then one is a count, or late."""
    hlc, rows = clock.pack(NOW_MS), []
    shared = {name: draw(TEXTS) for name in ("sku", "lot", "reference") if draw(st.booleans())}
    for number in range(draw(st.integers(1, 6))):
        hlc += draw(st.integers(1, 1 << 20))
        more: dict[str, Any] = {"mono_ms": draw(st.integers(0, MONOTONIC_MS_MAX)), **shared}
        for name, values in (
            ("sku", TEXTS),
            ("lot", TEXTS),
            ("serial", TEXTS),
            ("actor", TEXTS),
            ("reference", TEXTS),
            ("device", st.sampled_from(["scanner-1", "Gate.2"])),
            ("event", st.just(f"e:{number}")),
            ("device_at_ms", st.integers(0, MONOTONIC_MS_MAX)),
            ("late_ms", st.integers(1, MONOTONIC_MS_MAX)),
            ("time_doubt", st.sampled_from(["unproven", "too-old"])),
            ("boot", st.sampled_from([BOOT, OTHER_BOOT])),
        ):
            if draw(st.integers(0, 3)) == 0:
                more[name] = draw(values)
        if draw(st.integers(0, 4)) == 0:
            rows.append(
                count(hlc, draw(TEXTS), draw(st.integers(0, QUANTITY_MAX)), **more).model_dump(exclude_none=True)
            )
            continue
        kind = draw(st.sampled_from(get_args(MovementKind)))
        try:
            ends = default_route(kind, draw(TEXTS), "@transit:hamburg" if kind == "ship" else draw(TEXTS))
            made = movement(hlc, kind, *ends, draw(st.integers(1, QUANTITY_MAX)), **more)
        except (InvalidEntry, ValueError):
            made = movement(hlc, "receive", "@supplier", "A-1", **more)
        rows.append(made.model_dump(exclude_none=True))
    return rows


def folded(made: dict[str, list[Any]]) -> dict[str, Any]:
    """Columns as a gateway seals them: one value where all rows have the same."""
    return {name: values[0] if all(value == values[0] for value in values) else values for name, values in made.items()}


BOOTS = st.sampled_from([{}, {BOOT: NOW_MS}, {BOOT: -NOW_MS, OTHER_BOOT: 1}])


@given(entry_rows(), BOOTS, st.sampled_from([columns, lambda rows: folded(columns(rows))]))
@settings(max_examples=400, deadline=None)
def test_both_ways_agree_on_what_gateways_write(
    rows: list[dict[str, Any]], boots: dict[str, int], seal: Callable[[list[dict[str, Any]]], dict[str, Any]]
) -> None:
    """And the quick one takes it, whatever the entries are."""
    frame = Chain("gw-a").seal_columns(seal(rows), len(rows), boots)
    taken = require_same(frame)
    assert taken
    if rows_of(exactly(frame).movements):
        assert frame.entries().movements.claimed_ms.tolist() == [
            times.claimed_ms(entry, boots)
            for entry in frame.validated()[0]
            if entry is not None and entry.kind != "count"
        ]


@given(
    entry_rows(),
    BOOTS,
    st.lists(
        st.tuples(st.sampled_from(sorted(frames.COLUMNS)), st.integers(0, 7), st.sampled_from(STRANGE)),
        min_size=1,
        max_size=2,
    ),
)
@settings(max_examples=600, deadline=None)
def test_what_nobody_writes_is_left_to_the_exact_way(
    rows: list[dict[str, Any]], boots: dict[str, int], changes: Sequence[tuple[str, int, Any]]
) -> None:
    """A value, or a whole column, is replaced by something strange: the quick way finds the same, or takes nothing."""
    made: dict[str, Any] = copy.deepcopy(columns(rows))
    for name, place, strange in changes:
        column = made.get(name)
        if isinstance(column, list) and place < len(column):
            column[place] = strange
        else:
            made[name] = strange
    try:
        payload = json.dumps(made)
    except ValueError:
        return  # a number too long to be written
    frame = Chain("gw-a").seal_columns(json.loads(payload), len(rows), boots)
    require_same(frame)
    assert frame.entries() is not None


@pytest.mark.bound("cloud_store.merge.frame_entries.TEXTS_REMEMBERED_MAX")
def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant with ever new names costs the worker no memory, and nobody a verdict."""
    monkeypatch.setattr(frame_entries, "TEXTS_REMEMBERED_MAX", 50)
    chain = Chain("gw-a")
    for turn in range(20):
        pieces = [
            movement(clock.pack(NOW_MS, n), "receive", "@supplier", f"shelf {turn} {n}", sku=f"sku {turn} {n}")
            for n in range(20)
        ]
        assert len(chain.seal(pieces).entries().movements) == 20
        assert len(frame_entries._TEXT._good) <= 50
        assert len(frame_entries._routes_known) <= 50

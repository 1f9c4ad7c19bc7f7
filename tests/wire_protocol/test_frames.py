"""Frames: what goes in comes out, whatever arrives is bounded, and the chain shows every change."""

import json
import random
import zlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire_protocol.strategies import BOOT, EPOCH, ledger_entries, readings
from wire_protocol import frames
from wire_protocol.entries import Count, Movement, Reading, validate
from wire_protocol.errors import InvalidFrame
from wire_protocol.frames import FrameHeader

Entries = list[Movement | Count | Reading]


def header(count: int, **changes: object) -> FrameHeader:
    """A header for `count` entries."""
    values = {
        "stream": "ledger",
        "epoch": EPOCH,
        "frame": 1,
        "first_seq": 1,
        "count": count,
        "boots": {BOOT: 12},
        "prev": frames.genesis("gw-1", EPOCH, "ledger"),
    }
    return FrameHeader.model_validate(values | changes)


def seal(entries: Sequence[Movement | Count | Reading]) -> bytes:
    """A frame of these entries."""
    return frames.seal(header(len(entries)), entries)


def repacked(encoded: bytes, **changes: object) -> bytes:
    """A frame with some of its envelope replaced."""
    envelope = json.loads(zlib.decompress(encoded) if encoded[:1] != b"{" else encoded)
    return json.dumps(envelope | changes).encode()


@given(st.lists(st.one_of(ledger_entries, readings()), min_size=1, max_size=30))
def test_entries_survive_the_frame(entries: Entries) -> None:
    """An entry changed by its own encoding would be booked differently at the two ends."""
    frame = frames.decode(seal(entries))
    decoded, rejected = validate(frame.rows)
    assert (frame.problem, rejected) == (None, [])
    assert decoded == entries
    assert [entry.body() for entry in decoded if entry] == [entry.body() for entry in entries]


@given(st.lists(ledger_entries, min_size=1, max_size=5))
def test_sealing_is_deterministic_and_the_digest_is_of_what_it_says(entries: Entries) -> None:
    """The same entries must give the same bytes; the digest is of the JSON, however it was compressed."""
    encoded = seal(entries)
    assert encoded == seal(entries)
    plain = zlib.decompress(encoded)
    assert frames.decode(encoded).digest == frames.digest(encoded) == frames.digest(zlib.compress(plain, 1))
    assert frames.digest(encoded) != frames.digest(zlib.compress(plain.replace(b'"v":1', b'"v":2')))


def test_no_flipped_bit_makes_another_history_of_a_frame() -> None:
    """The padding at the end of a zlib stream has no checksum: a flip there must be harmless, any other is noticed."""
    encoded = seal([Count(hlc=1, boot=BOOT, mono_ms=0, sku="tea", quantity=1, location="A")])
    for bit in range(8 * len(encoded)):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert frames.decode(bytes(damaged)).digest == frames.digest(encoded)
        except InvalidFrame:
            continue


@given(st.binary(max_size=200))
def test_noise_is_refused_and_nothing_else_happens(noise: bytes) -> None:
    """Whatever arrives on a frame topic is either a frame or an InvalidFrame."""
    with pytest.raises(InvalidFrame):
        frames.decode(noise)


def test_a_decompression_bomb_is_refused() -> None:
    """A kilobyte that unfolds into gigabytes must not take the worker with it."""
    with pytest.raises(InvalidFrame, match="too large"):
        frames.decode(zlib.compress(b" " * (64 << 20), 9))


@given(st.integers(0, 10_000))
def test_a_damaged_frame_is_never_taken_for_another(position: int) -> None:
    """One flipped bit in a small frame must not become another quantity; the simulator found that it could."""
    entry = Count(hlc=1, boot=BOOT, mono_ms=0, sku="a", quantity=1, location="A")
    encoded = bytearray(seal([entry]))
    encoded[position // 8 % len(encoded)] ^= 1 << position % 8
    try:
        assert frames.decode(bytes(encoded)).rows == frames.decode(seal([entry])).rows
    except InvalidFrame:
        return


def test_an_oversized_frame_is_refused_before_anything_else() -> None:
    """The bound is on what is looked at, not on what is kept."""
    with pytest.raises(InvalidFrame, match="at most"):
        frames.decode(b"{" + b" " * frames.FRAME_BYTES_MAX)


@pytest.mark.parametrize("cut", [1, 10, -1])
def test_a_truncated_frame_is_refused(cut: int) -> None:
    """Half a frame must never be merged as a whole one."""
    entries = [
        Movement(
            hlc=1, boot=BOOT, mono_ms=0, kind="pick", sku="a" * 60, quantity=1, source="A", destination="@customer"
        )
    ] * 50
    with pytest.raises(InvalidFrame):
        frames.decode(seal(entries)[:cut])


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": None},
        {"stream": "other"},
        {"epoch": "x"},
        {"frame": 0},
        {"frame": 1.5},
        {"count": 501},
        {"count": True},
        {"first_seq": -1},
        {"prev": "zz"},
        {"boots": {"x": 1}},
        {"boots": {BOOT: 1e3}},
    ],
)
def test_a_bad_header_is_refused_with_its_place(change: dict[str, object]) -> None:
    """Without a good header there is no place in the chain, so nothing can be done with the frame."""
    entry = Count(hlc=1, boot=BOOT, mono_ms=0, sku="a", quantity=1, location="A")
    with pytest.raises(InvalidFrame, match=next(iter(change))):
        frames.decode(repacked(seal([entry]), **change))


@pytest.mark.parametrize(("once", "twice"), [('"frame":', "frame"), ('"quantity":', "quantity"), ('"epoch":', "epoch")])
def test_a_name_that_stands_twice_in_a_frame_is_refused(once: str, twice: str) -> None:
    """Two readers of one frame must not see two histories: its digest is of the bytes."""
    entry = Count(hlc=1, boot=BOOT, mono_ms=0, sku="a", quantity=1, location="A")
    plain = repacked(seal([entry])).decode().replace('": ', '":')
    with pytest.raises(InvalidFrame, match=f"{twice}: the name stands twice"):
        frames.decode(plain.replace(once, f"{once}7,{once}", 1).encode())


@pytest.mark.parametrize(
    "columns",
    [None, [], {"ms": [1, 2]}, {"ms": ["x"]}, {"ms": {}}, {"tick": ["a"]}, {"drift_ms": [None]}, {"ms": [10**30]}],
)
def test_unreadable_columns_leave_the_frame_its_place(columns: object) -> None:
    """A frame whose entries cannot be read must not stop its stream: it is merged with every entry rejected."""
    entry = Count(hlc=1, boot=BOOT, mono_ms=0, sku="a", quantity=1, location="A")
    frame = frames.decode(repacked(seal([entry]), entries=columns))
    if frame.problem is None:
        assert validate(frame.rows)[1]
    else:
        assert frame.rows == []
    assert frame.header.count == 1


def test_one_impossible_entry_is_rejected_and_the_rest_stays() -> None:
    """One bad entry must cost one entry."""
    good = [
        Movement(hlc=at, boot=BOOT, mono_ms=0, kind="pick", sku="a", quantity=at, source="A", destination="@customer")
        for at in (1, 2, 3)
    ]
    encoded = seal(good)
    envelope = json.loads(encoded if encoded[:1] == b"{" else zlib.decompress(encoded))
    envelope["entries"]["quantity"] = [1, -2, 3]
    decoded, rejected = validate(frames.decode(json.dumps(envelope).encode()).rows)
    assert decoded == [good[0], None, good[2]]
    assert [(index, "quantity" in reason) for index, reason in rejected] == [(1, True)]


def test_a_frame_that_cannot_fit_says_so() -> None:
    """The edge seals fewer entries then; a frame over the bound would be refused by every cloud."""
    rng = random.Random(1)
    entries = [
        Reading(hlc=at, boot=BOOT, mono_ms=0, values={f"m{rng.getrandbits(180):045x}": rng.random() for _ in range(16)})
        for at in range(1, 501)
    ]
    with pytest.raises(InvalidFrame, match="at most") as caught:
        seal(entries)
    assert caught.value.hint == "Seal fewer entries."

"""Every decoder that a stranger can reach: whatever it is given, it returns or says what is wrong, and stays small."""

import json
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuzz.decoders import DECODERS, samples
from wire_protocol.errors import WireError

PEAK_BYTES_MAX = 64 * 1024 * 1024
SAMPLES = samples()
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["\ud800", "#", "+", "../..", "a\0b", "$SYS", "x" * 5000]),
    st.sampled_from([10**400, float("nan"), -(1 << 63), 1 << 64]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
BOMBS = [
    zlib.compress(bytes(200 * 1024 * 1024), 9)[: 256 * 1024],
    zlib.compress(b'{"entries":' + b"[" * 500_000 + b"]" * 500_000 + b"}", 9),
    b"[" * 250_000,
    b'{"v":' * 40_000,
    b'{"v": 1, "version": ' + b"9" * 5_000 + b"}",
    b'{"v": 1, "v": 2, "version": 1, "version": 2, "state": {}, "state": {"devices": {}}}',
    b'{"v": 1e999}',
    b"\xff\xfe" * 100,
    b"\n" * 10_000,
    b"",
]


def given_to(name: str, payload: bytes) -> None:
    """Decode; `WireError` is an answer, everything else fails the test."""
    said = ""
    try:
        DECODERS[name](payload)
    except WireError as error:
        said = str(error)
    assert len(said) < 2_000, "a sentence for people, not the payload again"


@pytest.mark.parametrize("name", DECODERS)
@given(payload=st.binary(max_size=300))
@example(payload=b"{}")
def test_noise_is_refused(name: str, payload: bytes) -> None:
    """Somebody connects the wrong thing to the broker."""
    given_to(name, payload)


@pytest.mark.parametrize("name", sorted(set(DECODERS) & set(SAMPLES) - {"topic"}))
@given(data=st.data())
def test_a_valid_message_with_something_else_in_it(name: str, data: st.DataObject) -> None:
    """Any field replaced by anything, at any depth; or cut, or with a bit turned."""
    sample = data.draw(st.sampled_from(SAMPLES[name]))
    try:
        document = json.loads(zlib.decompress(sample) if name == "frame" and sample[:1] != b"{" else sample)
    except ValueError:
        at = data.draw(st.integers(0, len(sample) - 1))
        given_to(name, sample[:at] + bytes([sample[at] ^ data.draw(st.integers(1, 255))]) + sample[at + 1 :])
        given_to(name, sample[:at])
        return
    given_to(name, json.dumps(_changed(document, data)).encode(errors="surrogatepass"))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_a_bomb_costs_little(name: str, bomb: bytes) -> None:
    """Compressed, nested, or with a number of five thousand digits."""
    tracemalloc.start()
    try:
        given_to(name, bomb)
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES_MAX
    finally:
        tracemalloc.stop()


def test_every_sample_is_taken() -> None:
    """Fuzzing that begins from something invalid never gets inside."""
    for name, payloads in SAMPLES.items():
        assert DECODERS[name](payloads[0]) is not None


def _changed(document: Any, data: st.DataObject) -> Any:
    """The document with one of its parts replaced."""
    if not isinstance(document, dict | list) or not document or data.draw(st.integers(0, 3)) == 0:
        return data.draw(anything)
    keys = list(document) if isinstance(document, dict) else range(len(document))
    key = data.draw(st.sampled_from(keys))
    changed = dict(document) if isinstance(document, dict) else list(document)
    changed[key] = _changed(document[key], data)
    return changed

"""A PUBLISH is read as paho reads it. Broken when one bit of a packet is taken for something else."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt import _packet
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_agent.devices import quick_publish

VERSIONS = st.sampled_from([MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311])


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    before = _packet.decode_publish
    yield
    _packet.decode_publish = before


def outcome(decode: quick_publish.Decode, header: int, packet: bytes, version: MQTTProtocolVersion) -> object:
    """What is read, or that it is refused."""
    try:
        return quick_publish._plain(decode(header, bytearray(packet), version))
    except Exception as error:  # noqa: BLE001 - whichever it is
        return type(error)


@given(st.integers(0x30, 0x3F), st.binary(max_size=40), VERSIONS)
def test_any_bytes_are_read_alike(header: int, packet: bytes, version: MQTTProtocolVersion) -> None:
    """Cut short, malformed, with properties or without: the same values, or the same refusal."""
    own = getattr(_packet.decode_publish, "own", _packet.decode_publish)
    assert outcome(quick_publish._quick(own), header, packet, version) == outcome(own, header, packet, version)


@given(
    st.sampled_from([0x30, 0x31, 0x32, 0x33, 0x3A, 0x3B]),
    st.text(min_size=1, max_size=20),
    st.integers(1, 65535),
    st.binary(max_size=60),
    st.sampled_from([b"\x00", b"\x02\x01\x01", b"\x05\x02\x00\x00\x00\x09"]),
)
def test_whole_packets_are_read_alike(header: int, topic: str, mid: int, payload: bytes, properties: bytes) -> None:
    """As a broker sends them."""
    encoded = topic.encode("utf-8", "replace")
    identifier = mid.to_bytes(2, "big") if header & 0x06 else b""
    packet = len(encoded).to_bytes(2, "big") + encoded + identifier + properties + payload
    own = getattr(_packet.decode_publish, "own", _packet.decode_publish)
    read = outcome(quick_publish._quick(own), header, packet, MQTTProtocolVersion.MQTTv5)
    assert read == outcome(own, header, packet, MQTTProtocolVersion.MQTTv5)
    assert isinstance(read, list)
    assert read[-2] == payload


def test_it_is_in_place_with_the_paho_that_we_install() -> None:
    """When this fails after an upgrade, paho has changed: fit this to it, or take it out if paho needs it no more."""
    assert quick_publish.install()
    assert quick_publish.install(), "the second time it is there"
    assert getattr(_packet.decode_publish, "own", None) is not None


def test_another_paho_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that function, with other parameters, or with other answers: the agent works with what paho has."""

    def other_parameters(header: int, packet: bytes) -> None:
        raise AssertionError((header, packet))

    def other_answers(header: int, packet: bytes, protocol: MQTTProtocolVersion) -> object:
        del header, protocol
        nothing = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        return _packet.PublishPacket(False, 0, False, b"", 0, nothing, bytes(packet))

    for other in (None, other_parameters, other_answers):
        monkeypatch.setattr(_packet, "decode_publish", other)
        assert not quick_publish.install()
        assert _packet.decode_publish is other

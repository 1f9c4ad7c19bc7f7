"""Topics: built and parsed alike, and nobody can name more than one gateway with one."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire_protocol import topics
from wire_protocol.errors import InvalidName, InvalidTopic, WireError
from wire_protocol.topics import STREAMS, TOPICS, Channel, ClaimTopic, DeviceTopic, LinkTopic

slugs = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@given(slugs)
def test_every_topic_of_a_gateway_parses_back(gateway: str) -> None:
    """A frame published on a topic the other end reads differently would be lost or booked to somebody else."""
    for rule in TOPICS:
        if "{gateway}" in rule.pattern:
            assert topics.parse(topics.link(gateway, rule.channel)) == LinkTopic(gateway, rule.channel)
    for stream in STREAMS:
        parsed = topics.parse(topics.up(gateway, stream))
        assert isinstance(parsed, LinkTopic)
        assert parsed.stream == stream


@given(slugs)
def test_shard_is_crc32_modulo_64(gateway: str) -> None:
    """Both ends and every worker must agree on the shard, forever."""
    assert topics.shard(gateway) == zlib.crc32(gateway.encode()) % 64
    assert topics.up(gateway, "ledger").split("/")[2] == f"{zlib.crc32(gateway.encode()) % 64:02x}"


def test_device_and_claim_topics_parse_back() -> None:
    """Device events and enrolment go through the same table."""
    assert topics.parse("stocktide/v1/dev/Till_1.a/event") == DeviceTopic("Till_1.a", Channel.DEVICE_EVENT)
    assert topics.parse(topics.claim("c-1", Channel.CLAIM_REQUEST)) == ClaimTopic("c-1", Channel.CLAIM_REQUEST)
    assert isinstance(topics.parse(topics.claim("c-1", Channel.CLAIM_RESPONSE)), ClaimTopic)


@pytest.mark.parametrize(
    "name", ["", "+", "#", "a/b", "gw#", "GW", "gw\n", "gw\u0000", "-gw", "gw-", "é", "a" * 64, "../x", "a b", "\ud800"]
)
def test_a_name_that_could_reach_beyond_itself_is_refused(name: str) -> None:
    """A wildcard or a slash in a gateway's name would let it publish or subscribe for others."""
    with pytest.raises(InvalidName) as caught:
        topics.up(name, "ledger")
    assert caught.value.hint


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "stocktide",
        "stocktide/v1",
        "stocktide/v2/00/gw/up/ledger",
        "stocktide/v1/zz/gw-1/up/ledger",
        "stocktide/v1/26/gw-1/up/other",
        "stocktide/v1/26/gw-1/up/ledger/more",
        "stocktide/v1/dev/x/other",
        "x" * 1000,
        "stocktide/v1/dev//event",
        "stocktide/v1/claim/C-1/request",
    ],
)
def test_foreign_topics_are_refused(topic: str) -> None:
    """What is not ours must not be taken for ours, and must not crash its reader."""
    with pytest.raises(WireError):
        topics.parse(topic)


def test_the_names_of_workers_and_agents_are_taken() -> None:
    """A gateway named like the workers would have the workers' rights at the broker."""
    with pytest.raises(InvalidName, match="ingest"):
        topics.up("ingest", "ledger")
    with pytest.raises(InvalidName, match="agent"):
        topics.device("agent", Channel.DEVICE_EVENT)


def test_a_gateway_in_another_shard_is_refused() -> None:
    """The shard decides which worker sees the frames in order; a lying topic must not get past that."""
    right = topics.shard("gw-1")
    with pytest.raises(InvalidTopic, match="shard"):
        topics.parse(f"stocktide/v1/{(right + 1) % 64:02x}/gw-1/up/ledger")

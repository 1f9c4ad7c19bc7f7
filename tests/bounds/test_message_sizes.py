"""Every message of ours fits every hop. Broken, one gateway's large message throws a worker off the broker."""

import asyncio
import re
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from broker_config import fleet, others
from broker_config.fleet import FleetConfig
from broker_config.limits import PACKET_OVERHEAD_BYTES, BrokerLimits
from broker_config.mosquitto import TlsFiles
from broker_config.policy import Side
from cloud_store.base.connection import connect
from cloud_store.provisioning import catalog
from cloud_store.tenancy import registry
from mqtt_client import ConnectionOptions, MessageTooLarge
from mqtt_client import connect as open_connection
from testbed.services import PrivateBroker
from wire_protocol import asyncapi, frames, messages, names, site_messages, topics
from wire_protocol.address import BrokerAddress
from wire_protocol.catalog import CatalogItem, CatalogPosition, CatalogRequest
from wire_protocol.firmware import FirmwareChunk, FirmwareChunkLine
from wire_protocol.frames import FRAME_BYTES_MAX, FRAME_ENTRIES_MAX, FrameHeader
from wire_protocol.site_messages import PACK_BYTES_TARGET, SiteFrame, SiteFrameLine, pack, unpack
from wire_protocol.topics import TOPICS, TopicRule

MakeBroker = Callable[..., PrivateBroker]
TLS = TlsFiles(cafile=Path("/c/ca.pem"), certfile=Path("/c/server.pem"), keyfile=Path("/c/server.key"))
CONFIG = FleetConfig(directory=Path("/b"), tls=TLS, crlfile=Path("/c/crl.pem"), bridge_password="correct-horse")


def payload_bytes_max(rule: TopicRule) -> int:
    """The largest payload on a topic, by the classes that say so."""
    payload = asyncapi.PAYLOADS[rule.channel]
    if payload is FrameHeader:
        return FRAME_BYTES_MAX
    if payload is SiteFrameLine:
        return site_messages.PIECES_BYTES_MAX
    if payload is FirmwareChunkLine:
        return FirmwareChunk.bytes_max
    assert issubclass(payload, messages.Message)
    return payload.bytes_max


def packet_limits() -> dict[str, tuple[str, int]]:
    """The packet bound of every listener of every broker that we render: which topics it carries, and how much."""
    rendered = fleet.render_fleet(CONFIG)
    mosquitto = re.compile(r"^max_packet_size (\d+)$", re.MULTILINE)

    def found(pattern: str | re.Pattern[str], text: str) -> int:
        match = re.search(pattern, text)
        assert match is not None, text
        return int(match[1])

    return {
        "cloud": ("{gateway}", found(mosquitto, rendered[fleet.CLOUD / fleet.CONF])),
        "claims": ("{claim}", found(mosquitto, rendered[fleet.CLAIMS / fleet.CONF])),
        "the claims' bridge in the cloud": ("{claim}", found(mosquitto, rendered[fleet.CLOUD / fleet.CONF])),
        "gateway": ("{device}", BrokerLimits.for_side(Side.GATEWAY).packet_bytes_max),
        "EMQX": ("{gateway}", found(r"max_packet_size = (\d+)B", others.render_emqx(CONFIG)[others.EMQX_CONF])),
        "RabbitMQ": (
            "{gateway}",
            found(r"max_packet_size_authenticated = (\d+)", others.render_rabbitmq(CONFIG, [])[others.RABBITMQ_CONF]),
        ),
    }


@pytest.mark.parametrize("broker", packet_limits())
def test_every_message_fits_every_broker_that_we_render(broker: str) -> None:
    """Its own bound, the topic with the longest name in it, and MQTT's own bytes."""
    owner, packet_bytes_max = packet_limits()[broker]
    for rule in (rule for rule in TOPICS if owner in rule.pattern):
        packet = payload_bytes_max(rule) + len(rule.pattern) + names.DEVICE_CHARS_MAX + 64
        assert packet <= packet_bytes_max, rule.channel
    assert max(len(rule.pattern) for rule in TOPICS) + names.DEVICE_CHARS_MAX + 64 < PACKET_OVERHEAD_BYTES


def test_what_is_packed_fits_and_is_all_there() -> None:
    """Many small frames, and one that alone is larger than a pack: nothing is left out, the order stays."""
    made = [SiteFrame(f"gw-{n}", 1, bytes([n % 251]) * (n * 37 % 9_000 + 1)) for n in range(300)]
    made.insert(100, SiteFrame("gw-big", 1, bytes(FRAME_BYTES_MAX), tuple(range(1, FRAME_ENTRIES_MAX + 1))))
    for bytes_max in (site_messages.PIECES_BYTES_MAX, PACK_BYTES_TARGET, 20_000):
        payloads = list(pack((frame.encode() for frame in made), bytes_max))
        assert [frame for payload in payloads for frame in unpack(payload)] == made
        large = [payload for payload in payloads if len(payload) > min(bytes_max, PACK_BYTES_TARGET)]
        assert [len(unpack(payload)) for payload in large] == [1]
        assert len(large[0]) <= site_messages.PIECES_BYTES_MAX


def options(broker: PrivateBroker, *, mqtt_5: bool = True) -> ConnectionOptions:
    """How a test connects."""
    return ConnectionOptions(address=BrokerAddress("127.0.0.1", broker.port), client_id="test", mqtt_5=mqtt_5)


@pytest.mark.services
async def test_a_broker_s_own_bound_is_kept_and_named(private_broker: MakeBroker) -> None:
    """Mosquitto ends the connection of a client that sends more; ours does not send it, and says what is too large."""

    def config(port: int, _: Path) -> str:
        bounds = "max_packet_size 10000\nmax_inflight_messages 5"
        return f"listener {port} 127.0.0.1\nallow_anonymous true\n{bounds}\n"

    broker = private_broker(config)
    async with open_connection(options(broker)) as connection, asyncio.timeout(60):
        topic = "stocktide/v1/x"
        bytes_max = connection.payload_bytes_max(topic)
        assert 9_900 < bytes_max < 10_000
        await connection.subscribe(topic)
        with pytest.raises(MessageTooLarge, match=f"{bytes_max + 1} bytes on {topic}; the broker takes at most"):
            await connection.publish(topic, bytes(bytes_max + 1))
        await connection.publish(topic, bytes(bytes_max))
        assert len((await anext(connection.messages())).payload) == bytes_max
        await asyncio.gather(*(connection.publish(topic, b"%d" % n) for n in range(50)))


@pytest.mark.services
def test_a_page_of_the_catalogue_fits_what_the_broker_takes(database_url: str) -> None:
    """Eight hundred long names; each comes once, at least one in a page however little fits."""
    with closing(connect(database_url, application="test")) as connection:
        registry.add_tenant(connection, "acme")
        registry.add_site(connection, "acme", "berlin")
        registry.add_gateway(connection, "acme", "berlin", "gw-a")
        items = [CatalogItem(sku=f"sku-{n:04}", name="n" * 60) for n in range(800)]
        registry.add_items(connection, "acme", items)
        registry.add_locations(connection, "acme", "berlin", [f"shelf-{n:04}" for n in range(50)])
        for bytes_max in (1 << 20, 65_536, 9_000, 100):
            after, seen, pages = CatalogPosition(), list[str](), 0
            while True:
                page = catalog.page(connection, "gw-a", CatalogRequest(after=after), bytes_max=bytes_max)
                assert page is not None
                assert len(page.encode()) <= max(bytes_max, 2_000)
                seen += [*(item.sku for item in page.items), *page.locations]
                after, pages = page.upto, pages + 1
                if not page.more:
                    break
            assert len(seen) == len(set(seen)) == 850
            assert all(before < later for before, later in pairwise(seen[:800]))


def test_the_longest_topic_is_the_longest() -> None:
    """A worker asks what fits with it."""
    from cloud_ingest.transport.link import LONGEST_TOPIC  # noqa: PLC0415 - what it is about

    longest = max(
        len(topics.link("g" * names.SLUG_CHARS_MAX, rule.channel)) for rule in TOPICS if "{gateway}" in rule.pattern
    )
    assert len(LONGEST_TOPIC) >= longest
    assert frames.FRAME_BYTES_MAX < site_messages.PIECES_BYTES_MAX

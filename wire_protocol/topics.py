"""Every topic of Stocktide: built, parsed and sharded here and nowhere else.

`TOPICS` is the policy as data: which role may publish and which may subscribe. Broker ACLs are rendered from it, the
AsyncAPI document is written from it, and both ends build and parse through it.

Invariant: no other module contains a topic string.
"""

import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, TypeAlias, get_args

from wire_protocol import names
from wire_protocol.errors import InvalidTopic

ROOT: Final = "stocktide/v1"
SHARDS: Final = 64
TOPIC_BYTES_MAX: Final = 200

Stream: TypeAlias = Literal["ledger", "readings"]
STREAMS: Final[tuple[Stream, ...]] = get_args(Stream)


class Role(StrEnum):
    """Who speaks on a broker."""

    GATEWAY = "gateway"  # the edge agent, on the cloud's broker, as user {gateway}
    INGEST = "ingest"  # a cloud worker, on the cloud's broker
    CLAIMANT = "claimant"  # an unenrolled gateway, on the cloud's broker, as user {claim}
    DEVICE = "device"  # a scanner or sensor, on the gateway's own broker, as user {device}
    AGENT = "agent"  # the edge agent, on the gateway's own broker


class Channel(StrEnum):
    """What a topic carries; the value is the last part of its pattern."""

    LEDGER = "up/ledger"
    READINGS = "up/readings"
    STATUS = "up/status"
    REPORTED_TWIN = "up/twin"
    REPLY = "up/reply"
    SITE_REQUEST = "up/site"
    CATALOG_REQUEST = "up/catalog"
    CERTIFICATE_REQUEST = "up/certificate"
    FIRMWARE_REQUEST = "up/firmware"
    ACK = "down/ack"
    DESIRED_TWIN = "down/twin"
    SITE_LEDGER = "down/ledger"
    CATALOG = "down/catalog"
    COMMAND = "down/command"
    CERTIFICATE = "down/certificate"
    FIRMWARE = "down/firmware"
    CLAIM_REQUEST = "request"
    CLAIM_RESPONSE = "response"
    DEVICE_EVENT = "event"
    DEVICE_READING = "reading"
    DEVICE_STATUS = "status"
    DEVICE_RECEIPT = "receipt"
    DEVICE_CONFIG = "config"
    DEVICE_COMMAND = "command"
    DEVICE_FIRMWARE = "firmware"
    DEVICE_FIRMWARE_REQUEST = "firmware-ask"
    DEVICE_FIRMWARE_CHUNK = "firmware-chunk"


@dataclass(frozen=True, slots=True)
class TopicRule:
    """One row of the topic table.

    `pattern` has the placeholders `{shard}`, `{gateway}`, `{claim}` and `{device}`. A publisher or subscriber whose
    role owns the placeholder (gateway, claimant, device) is confined to its own name; the others see all.
    """

    channel: Channel
    pattern: str
    publisher: Role
    subscriber: Role
    qos: Literal[0, 1]
    retain: bool
    summary: str


def _link(channel: Channel, *, up: bool, retain: bool = False, summary: str) -> TopicRule:
    publisher, subscriber = (Role.GATEWAY, Role.INGEST) if up else (Role.INGEST, Role.GATEWAY)
    return TopicRule(channel, f"{ROOT}/{{shard}}/{{gateway}}/{channel}", publisher, subscriber, 1, retain, summary)


def _device(channel: Channel, *, up: bool, retain: bool = False, qos: Literal[0, 1] = 1, summary: str) -> TopicRule:
    publisher, subscriber = (Role.DEVICE, Role.AGENT) if up else (Role.AGENT, Role.DEVICE)
    return TopicRule(channel, f"{ROOT}/dev/{{device}}/{channel}", publisher, subscriber, qos, retain, summary)


def _claim(channel: Channel, *, up: bool, summary: str) -> TopicRule:
    publisher, subscriber = (Role.CLAIMANT, Role.INGEST) if up else (Role.INGEST, Role.CLAIMANT)
    return TopicRule(
        channel, f"{ROOT}/claim/{{claim}}/{channel}", publisher, subscriber, 1, retain=False, summary=summary
    )


TOPICS: Final[tuple[TopicRule, ...]] = (
    _link(Channel.LEDGER, up=True, summary="Sealed frames of movements and counts"),
    _link(Channel.READINGS, up=True, summary="Sealed frames of sensor readings"),
    _link(Channel.STATUS, up=True, retain=True, summary="Gateway status, and its last will"),
    _link(Channel.REPORTED_TWIN, up=True, summary="Reported twin: version applied and errors"),
    _link(Channel.REPLY, up=True, summary="Results of commands"),
    _link(Channel.SITE_REQUEST, up=True, summary="Asks for the frames of the site's other logs"),
    _link(Channel.CATALOG_REQUEST, up=True, summary="Asks for what has changed in the catalogue"),
    _link(Channel.CERTIFICATE_REQUEST, up=True, summary="Asks for the next certificate before this one runs out"),
    _link(Channel.FIRMWARE_REQUEST, up=True, summary="Asks for the next piece of a firmware image"),
    _link(Channel.ACK, up=False, summary="Cumulative acknowledgement, sent after the commit"),
    _link(Channel.DESIRED_TWIN, up=False, retain=True, summary="Desired twin"),
    _link(Channel.SITE_LEDGER, up=False, summary="Frames of the site's other logs, and where they end"),
    _link(Channel.CATALOG, up=False, summary="Pages of items and locations"),
    _link(Channel.COMMAND, up=False, summary="Commands"),
    _link(Channel.CERTIFICATE, up=False, summary="The next certificate, or why there is none"),
    _link(Channel.FIRMWARE, up=False, summary="A piece of a firmware image"),
    _claim(Channel.CLAIM_REQUEST, up=True, summary="Enrolment request with a one-time claim"),
    _claim(Channel.CLAIM_RESPONSE, up=False, summary="Enrolment response"),
    _device(Channel.DEVICE_EVENT, up=True, summary="Scans: movements and counts"),
    _device(Channel.DEVICE_READING, up=True, summary="Sensor readings"),
    _device(Channel.DEVICE_STATUS, up=True, retain=True, summary="Device status, and its last will"),
    _device(Channel.DEVICE_RECEIPT, up=False, qos=0, summary="Event ids the ledger has committed or refused"),
    _device(Channel.DEVICE_CONFIG, up=False, retain=True, summary="Device configuration"),
    _device(Channel.DEVICE_COMMAND, up=False, summary="Asks a device to show where it is"),
    _device(Channel.DEVICE_FIRMWARE, up=False, retain=True, summary="The firmware release that a device is to run"),
    _device(Channel.DEVICE_FIRMWARE_REQUEST, up=True, qos=0, summary="Asks for a piece of a firmware image"),
    _device(Channel.DEVICE_FIRMWARE_CHUNK, up=False, qos=0, summary="A piece of a firmware image"),
)
RULES: Final[dict[Channel, TopicRule]] = {rule.channel: rule for rule in TOPICS}

_STREAM_CHANNEL: Final[dict[Stream, Channel]] = {"ledger": Channel.LEDGER, "readings": Channel.READINGS}
STREAM_OF: Final[dict[Channel, Stream]] = {channel: stream for stream, channel in _STREAM_CHANNEL.items()}
_LINK_CHANNELS: Final = {rule.channel.value: rule.channel for rule in TOPICS if "{gateway}" in rule.pattern}
_DEVICE_CHANNELS: Final = {rule.channel.value: rule.channel for rule in TOPICS if "{device}" in rule.pattern}
_CLAIM_CHANNELS: Final = {rule.channel.value: rule.channel for rule in TOPICS if "{claim}" in rule.pattern}


@dataclass(frozen=True, slots=True)
class LinkTopic:
    """A parsed topic between a gateway and the cloud."""

    gateway: str
    channel: Channel

    @property
    def stream(self) -> Stream | None:
        """The stream a frame topic belongs to; None for other channels."""
        return STREAM_OF.get(self.channel)


@dataclass(frozen=True, slots=True)
class DeviceTopic:
    """A parsed topic on a gateway's own broker."""

    device: str
    channel: Channel


@dataclass(frozen=True, slots=True)
class ClaimTopic:
    """A parsed enrolment topic."""

    claim: str
    channel: Channel


def shard(gateway: str) -> int:
    """The shard of a gateway, 0 to 63: crc32 of its name modulo 64, so that one worker sees its frames in order."""
    return zlib.crc32(gateway.encode()) % SHARDS


def link(gateway: str, channel: Channel) -> str:
    """The topic of one channel of one gateway."""
    name = names.gateway(gateway)
    return RULES[channel].pattern.format(shard=f"{shard(name):02x}", gateway=name)


def up(gateway: str, stream: Stream) -> str:
    """The topic a gateway publishes the frames of a stream on."""
    return link(gateway, _STREAM_CHANNEL[stream])


def device(name: str, channel: Channel) -> str:
    """The topic of one channel of one device."""
    return RULES[channel].pattern.format(device=names.device(name))


def claim(name: str, channel: Channel) -> str:
    """The topic of one channel of one enrolment claim."""
    return RULES[channel].pattern.format(claim=names.slug(name, "claim"))


def shard_filter(number: int) -> str:
    """What the worker that holds a shard subscribes to."""
    return f"{ROOT}/{number:02x}/+/up/#"


def claim_filter() -> str:
    """What every worker subscribes to; of the claims it answers those whose shard it holds."""
    return RULES[Channel.CLAIM_REQUEST].pattern.format(claim="+")


def down_filter(gateway: str) -> str:
    """What a gateway subscribes to on the cloud's broker."""
    return f"{ROOT}/{shard(gateway):02x}/{names.slug(gateway, 'gateway')}/down/#"


def device_filter(channel: Channel) -> str:
    """What the agent subscribes to on the gateway's own broker."""
    return RULES[channel].pattern.format(device="+")


def parse(topic: str) -> LinkTopic | DeviceTopic | ClaimTopic:
    """Parse a topic a message arrived on.

    Raises:
        InvalidTopic: the topic is not Stocktide's, names an impossible device or gateway, or the shard is not the
            gateway's.
    """
    if len(topic.encode(errors="replace")) > TOPIC_BYTES_MAX:
        raise InvalidTopic("The topic is too long.")
    parts = topic.split("/")
    if parts[:2] != ROOT.split("/") or len(parts) < 5:  # noqa: PLR2004 - the shortest topic has five levels
        raise InvalidTopic(f"{topic!r} is not a Stocktide topic.", hint=f"Topics begin with {ROOT}/.")
    area, name, rest = parts[2], parts[3], "/".join(parts[4:])
    if area == "dev" and rest in _DEVICE_CHANNELS:
        return DeviceTopic(names.device(name), _DEVICE_CHANNELS[rest])
    if area == "claim" and rest in _CLAIM_CHANNELS:
        return ClaimTopic(names.slug(name, "claim"), _CLAIM_CHANNELS[rest])
    if rest in _LINK_CHANNELS:
        gateway = names.gateway(name)
        if area != f"{shard(gateway):02x}":
            raise InvalidTopic(f"Gateway {gateway} is not in shard {area}.", hint=f"Its shard is {shard(gateway):02x}.")
        return LinkTopic(gateway, _LINK_CHANNELS[rest])
    raise InvalidTopic(f"{topic!r} is not a Stocktide topic.")

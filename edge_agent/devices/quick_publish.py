"""A PUBLISH without properties, read at once.

For each PUBLISH of MQTT 5 paho makes two tables of all 27 properties and looks for each of them: a fifth of what an
event costs the agent, although devices send none. This is the change that paho would need, in the shape of its own
function: the same arguments, the same result, and whatever is not the frequent case goes to paho's own. It is put in
place only in a paho that has this function and gives the same answers to some packets; otherwise everything works as
before, slower.
"""

import inspect
from collections.abc import Callable
from typing import Any, Final

import structlog
from paho.mqtt import _packet
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

_FUNCTION: Final = "decode_publish"
_PARAMETERS: Final = ["header", "packet", "protocol"]
_FIELDS: Final = ("dup", "qos", "retain", "topic", "mid", "properties", "payload")
_DUP, _QOS, _RETAIN = 0x08, 0x06, 0x01
# Fixed headers and what follows them: with and without properties, QoS 0 and 1, an empty payload and an empty topic.
_SAMPLES: Final = (
    (0x30, b"\x00\x01a\x00"),
    (0x3B, b"\x00\x03a/b\x12\x34\x00{}"),
    (0x32, b"\x00\x01a\x00\x07\x02\x01\x01payload"),
    (0x34, b"\x00\x00\xff\xff\x00\x00\x01"),
)
log = structlog.get_logger("edge_agent.devices.quick_publish")
Decode = Callable[[int, bytes | bytearray, MQTTProtocolVersion], Any]


def install() -> bool:
    """Put it in the place of paho's own. Returns whether it is there."""
    own = getattr(_packet, _FUNCTION, None)
    if getattr(own, "own", None) is not None:
        return True
    try:
        made = _made_for(own)
    except Exception as error:  # noqa: BLE001 - whatever another paho is like, the agent works with it
        log.warning("slow_mqtt_decoding", reason=f"This version of paho is not known: {error}")
        return False
    setattr(_packet, _FUNCTION, made)
    return True


def _made_for(own: Decode | None) -> Decode:
    if own is None or list(inspect.signature(own).parameters) != _PARAMETERS:
        raise AttributeError(_FUNCTION)
    made = _quick(own)
    if not _agree(made, own):
        raise ValueError("it reads some packets differently")
    return made


def _quick(own: Decode) -> Decode:
    result, none = _packet.PublishPacket, Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]

    def decode_publish(header: int, packet: bytes | bytearray, protocol: MQTTProtocolVersion) -> Any:
        try:
            topic_end = (packet[0] << 8 | packet[1]) + 2
            qos = (header & _QOS) >> 1
            end = topic_end + 2 if qos else topic_end
            if protocol != MQTTProtocolVersion.MQTTv5 or packet[end]:
                return own(header, packet, protocol)
            mid = packet[topic_end] << 8 | packet[topic_end + 1] if qos else 0
        except IndexError:
            return own(header, packet, protocol)
        topic, payload = bytes(packet[2:topic_end]), bytes(packet[end + 1 :])
        return result(bool(header & _DUP), qos, bool(header & _RETAIN), topic, mid, none, payload)

    decode_publish.own = own  # type: ignore[attr-defined]
    return decode_publish


def _agree(one: Decode, other: Decode) -> bool:
    versions = (MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311)
    return all(
        _plain(one(header, bytearray(packet), version)) == _plain(other(header, bytearray(packet), version))
        for version in versions
        for header, packet in _SAMPLES
        if version == MQTTProtocolVersion.MQTTv5 or packet[1]
    )


def _plain(decoded: Any) -> list[Any]:
    values = decoded._asdict()
    if tuple(values) != _FIELDS:
        raise AttributeError(str(tuple(values)))
    properties = values.pop("properties")
    return [*values.values(), None if properties is None else properties.json()]

"""The protocol as documents: JSON Schema of every payload, and AsyncAPI 3 (https://www.asyncapi.com/docs/reference).

Both are generated from the topic table and the models, so they cannot say anything else than the code does.
"""

from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from wire_protocol import PROTOCOL_VERSION, catalog, firmware, frames, messages, site_messages, twin
from wire_protocol.entries import Count, Movement, Reading
from wire_protocol.frames import FrameHeader
from wire_protocol.proof import DigestAnswer, DigestQuestion
from wire_protocol.topics import TOPICS, Channel, Role, TopicRule

PAYLOADS: Final[dict[Channel, type[BaseModel]]] = {
    Channel.LEDGER: FrameHeader,
    Channel.READINGS: FrameHeader,
    Channel.STATUS: messages.GatewayStatus,
    Channel.REPORTED_TWIN: twin.ReportedTwin,
    Channel.REPLY: messages.Reply,
    Channel.CERTIFICATE_REQUEST: messages.CertificateRequest,
    Channel.ACK: messages.Ack,
    Channel.DESIRED_TWIN: twin.DesiredTwin,
    Channel.SITE_REQUEST: site_messages.SiteRequest,
    Channel.SITE_LEDGER: site_messages.SiteFrameLine,
    Channel.CATALOG: catalog.CatalogPage,
    Channel.CATALOG_REQUEST: catalog.CatalogRequest,
    Channel.COMMAND: messages.Command,
    Channel.CERTIFICATE: messages.CertificateResponse,
    Channel.CLAIM_REQUEST: messages.ClaimRequest,
    Channel.CLAIM_RESPONSE: messages.ClaimResponse,
    Channel.DEVICE_EVENT: messages.DeviceEvent,
    Channel.DEVICE_READING: messages.DeviceReading,
    Channel.DEVICE_STATUS: messages.DeviceStatus,
    Channel.DEVICE_RECEIPT: messages.DeviceReceipt,
    Channel.DEVICE_CONFIG: twin.DeviceConfig,
    Channel.DEVICE_COMMAND: messages.DeviceCommand,
    Channel.FIRMWARE_REQUEST: firmware.FirmwareRequest,
    Channel.FIRMWARE: firmware.FirmwareChunkLine,
    Channel.DEVICE_FIRMWARE: firmware.FirmwareOffer,
    Channel.DEVICE_FIRMWARE_REQUEST: firmware.FirmwareRequest,
    Channel.DEVICE_FIRMWARE_CHUNK: firmware.FirmwareChunkLine,
}
# What is inside other messages, or the second kind on a topic: entries, the end of a site's frames, the stock proof.
PARTS: Final[tuple[type[BaseModel], ...]] = (
    Movement,
    Count,
    Reading,
    site_messages.SiteHeads,
    DigestQuestion,
    DigestAnswer,
)

_PARAMETERS: Final = {
    "shard": "crc32(gateway) modulo 64, as two hexadecimal digits",
    "gateway": "The gateway's name, unique across tenants",
    "device": "The device's name, unique at its gateway",
    "claim": "A one-time claim",
}
_OFFLINE_ROLES: Final = (Role.DEVICE, Role.AGENT)


def schemas() -> dict[str, dict[str, Any]]:
    """A self-contained JSON Schema (draft 2020-12) for every payload and ledger entry, by model name."""
    models = {model.__name__: model for model in (*PAYLOADS.values(), *PARTS)}
    return {
        name: {"$schema": "https://json-schema.org/draft/2020-12/schema"} | model.model_json_schema()
        for name, model in sorted(models.items())
    }


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 document of all topics."""
    models = {model.__name__: model for model in (*PAYLOADS.values(), *PARTS)}
    _, shared = models_json_schema(
        [(model, "validation") for _, model in sorted(models.items())], ref_template="#/components/schemas/{model}"
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Stocktide",
            "version": str(PROTOCOL_VERSION),
            "description": "Inventory kept true from the shelf to the cloud, over MQTT.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "cloud": {"host": "broker.example.com:8883", "protocol": "mqtts", "description": "The cloud's broker"},
            "gateway": {"host": "gateway.local:1883", "protocol": "mqtt", "description": "A gateway's own broker"},
        },
        "channels": {_name(rule): _channel(rule) for rule in TOPICS},
        "operations": {name: operation for rule in TOPICS for name, operation in _operations(rule)},
        "components": {
            "messages": {_name(rule): _message(rule) for rule in TOPICS},
            "schemas": {name: _as_asyncapi(schema) for name, schema in sorted(shared["$defs"].items())},
        },
    }


def _as_asyncapi(schema: Any) -> Any:
    """A schema in AsyncAPI's dialect: its `discriminator` is the property's name, where OpenAPI has an object."""
    if isinstance(schema, list):
        return [_as_asyncapi(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _as_asyncapi(value) for key, value in schema.items()}
    if isinstance(made.get("discriminator"), dict) and "propertyName" in made["discriminator"]:
        made["discriminator"] = made["discriminator"]["propertyName"]
    return made


def _name(rule: TopicRule) -> str:
    return rule.channel.name.lower()


def _channel(rule: TopicRule) -> dict[str, Any]:
    server = "gateway" if rule.publisher in _OFFLINE_ROLES else "cloud"
    return {
        "address": rule.pattern,
        "description": rule.summary,
        "servers": [{"$ref": f"#/servers/{server}"}],
        "messages": {_name(rule): {"$ref": f"#/components/messages/{_name(rule)}"}},
        "parameters": {
            name: {"description": meaning} for name, meaning in _PARAMETERS.items() if f"{{{name}}}" in rule.pattern
        },
        "bindings": {"mqtt": {"bindingVersion": "0.2.0"}},
    }


def _operations(rule: TopicRule) -> list[tuple[str, dict[str, Any]]]:
    """What each role does with a topic; the description of a role's rights is the action seen from it."""
    bindings = {"mqtt": {"qos": rule.qos, "retain": rule.retain, "bindingVersion": "0.2.0"}}
    return [
        (
            f"{role}_{action}_{_name(rule)}",
            {
                "action": action,
                "channel": {"$ref": f"#/channels/{_name(rule)}"},
                "summary": f"{role}: {rule.summary}",
                "bindings": bindings,
            },
        )
        for role, action in ((rule.publisher, "send"), (rule.subscriber, "receive"))
    ]


def _message(rule: TopicRule) -> dict[str, Any]:
    payload = PAYLOADS[rule.channel]
    made: dict[str, Any] = {
        "name": payload.__name__,
        "summary": rule.summary,
        "payload": {"$ref": f"#/components/schemas/{payload.__name__}"},
    }
    if payload is FrameHeader:
        made["contentType"] = "application/octet-stream"
        made["description"] = (
            "JSON in a zlib stream (RFC 1950). Beside the header the object has "
            "`entries`: one list for each field of the entries, one value where all agree. At most "
            f"{frames.FRAME_BYTES_MAX} bytes and {frames.FRAME_ENTRIES_MAX} entries."
        )
    elif payload is site_messages.SiteFrameLine:
        made["contentType"] = "application/octet-stream"
        made["description"] = (
            "One after the other: a line of JSON with a line feed and a frame as it was sealed. The last may be a line "
            f"without a frame: a SiteHeads, the end of an answer. At most {site_messages.PIECES_BYTES_MAX} bytes."
        )
    elif payload is firmware.FirmwareChunkLine:
        made["contentType"] = "application/octet-stream"
        made["description"] = (
            "A line of JSON with a line feed, and behind it the bytes of the piece. At most "
            f"{firmware.FirmwareChunk.bytes_max} bytes."
        )
    elif issubclass(payload, messages.Message):
        made["description"] = f"At most {payload.bytes_max} bytes."
    return made

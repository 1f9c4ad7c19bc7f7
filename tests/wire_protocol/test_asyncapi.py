"""The generated documents: complete, self-consistent, and what the code does."""

import json
import re
from typing import Any

from wire_protocol import asyncapi, topics
from wire_protocol.messages import DeviceEvent


def references(value: Any) -> set[str]:
    """Every `$ref` in a document."""
    return set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(value)))


def resolve(document: dict[str, Any], reference: str) -> Any:
    """What a reference points to."""
    target: Any = document
    for part in reference.removeprefix("#/").split("/"):
        target = target[part]
    return target


def test_every_reference_leads_somewhere() -> None:
    """A dangling reference makes the document useless to every tool."""
    document = asyncapi.document()
    assert references(document)
    for reference in references(document):
        assert resolve(document, reference)
    for schema in asyncapi.schemas().values():
        for reference in references(schema):
            assert resolve(schema, reference)


def test_every_topic_has_a_channel_two_operations_and_a_payload() -> None:
    """A topic nobody documented is a topic nobody can implement."""
    document = asyncapi.document()
    assert {channel["address"] for channel in document["channels"].values()} == {rule.pattern for rule in topics.TOPICS}
    assert len(document["operations"]) == 2 * len(topics.TOPICS)
    for rule in topics.TOPICS:
        operations = document["operations"]
        assert operations[f"{rule.publisher}_send_{rule.channel.name.lower()}"]["bindings"]["mqtt"]["qos"] == rule.qos
        assert operations[f"{rule.subscriber}_receive_{rule.channel.name.lower()}"]["action"] == "receive"


def test_discriminators_are_in_asyncapis_dialect() -> None:
    """AsyncAPI wants the property's name; the official parser refuses OpenAPI's object."""

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            assert isinstance(value.get("discriminator", ""), str)
            for part in value.values():
                walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)

    walk(asyncapi.document()["components"]["schemas"])


def test_a_schema_says_what_the_model_checks() -> None:
    """Firmware authors validate against the schema, the agent against the model."""
    schema = asyncapi.schemas()["DeviceEvent"]
    assert schema["required"] == ["id", "kind", "sku", "quantity"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(DeviceEvent.model_fields)

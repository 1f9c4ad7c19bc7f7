"""Messages: strict about what devices say, tolerant on the link, bounded everywhere."""

import json
from pathlib import Path

import pytest

from tests.wire_protocol.strategies import EPOCH
from wire_protocol.messages import Ack, DeviceEvent, DeviceReading, GatewayStatus, InvalidMessage, Message
from wire_protocol.quantities import shown

HOSTILE = Path(__file__).parents[3] / "shared" / "data" / "hostile"
EVENT = {"v": 1, "id": "a-1", "kind": "pick", "sku": "85123A", "quantity": 2, "source": "A-01"}
READING = {"v": 1, "id": "a-1", "values": {"temperature_c": 21.5}}
MESSAGES = [kind for kind in Message.__subclasses__() if not kind.__name__.startswith("_")]


def test_an_event_round_trips() -> None:
    """What firmware sends is what the agent reads."""
    event = DeviceEvent.decode(json.dumps(EVENT).encode())
    assert DeviceEvent.decode(event.encode()) == event


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"v": 7}, "v"),
        ({"id": ""}, "id"),
        ({"id": "x" * 65}, "id"),
        ({"id": "a b"}, "id"),
        ({"kind": "x"}, "kind"),
        ({"quantity": "2"}, "quantity"),
        ({"quantity": 2.0}, "quantity"),
        ({"quantity": -1}, "quantity"),
        ({"quantity": True}, "quantity"),
        ({"quantity": 10**13}, "quantity"),
        ({"sku": " x"}, "sku"),
        ({"sku": "a\u0000b"}, "sku"),
        ({"sku": "x" * 65}, "sku"),
        ({"sku": None}, "sku"),
        ({"lott": "L"}, "lott"),
        ({"at_ms": -1}, "at_ms"),
        ({"at_ms": 10**20}, "at_ms"),
    ],
)
def test_a_wrong_field_is_refused_by_name(change: dict[str, object], where: str) -> None:
    """The dead letter must tell the firmware author what to mend."""
    with pytest.raises(InvalidMessage, match=where) as caught:
        DeviceEvent.decode(json.dumps(EVENT | change).encode())
    assert len(str(caught.value)) <= 200


def test_a_name_that_is_not_well_formed_is_explained_in_words() -> None:
    """Nobody should have to read a regular expression to mend a message."""
    with pytest.raises(InvalidMessage, match="sku: U\\+0009 CHARACTER TABULATION at position 2"):
        DeviceEvent.decode(json.dumps(EVENT | {"sku": "a\tb"}).encode())


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '"21"', "null", "[]", "{}"])
def test_a_reading_is_a_finite_number(value: str) -> None:
    """One NaN makes every average over it NaN."""
    with pytest.raises(InvalidMessage):
        DeviceReading.decode(json.dumps(READING).replace("21.5", value).encode())


def test_readings_are_bounded() -> None:
    """A device cannot invent metrics without end."""
    with pytest.raises(InvalidMessage, match="values"):
        DeviceReading.decode(json.dumps(READING | {"values": {}}).encode())
    with pytest.raises(InvalidMessage, match="values"):
        DeviceReading.decode(json.dumps(READING | {"values": {f"m{n}": 1.0 for n in range(17)}}).encode())


def test_every_message_is_bounded_in_bytes() -> None:
    """An oversized payload is refused before it is parsed."""
    assert len(MESSAGES) >= 12  # more when the whole suite has imported more
    kinds: list[type[Message]] = [DeviceEvent, DeviceReading, *MESSAGES]
    for kind in kinds:
        with pytest.raises(InvalidMessage, match="at most"):
            kind.decode(b"{" + b" " * kind.bytes_max)


def test_the_link_ignores_fields_it_does_not_know() -> None:
    """A newer cloud must not stop an older gateway."""
    ack = Ack(stream="ledger", epoch=EPOCH, frame=3, seq=30, now_ms=1, window=16)
    later = json.loads(ack.encode()) | {"novelty": {"deep": [1]}}
    assert Ack.decode(json.dumps(later).encode()) == ack
    status = GatewayStatus(state="online", epoch=EPOCH, version="0.1.0")
    assert GatewayStatus.decode(status.encode()) == status


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b"1", b"\xff\xfe", b'{"v":1', b"{}" * 2, b"[" * 8000])
def test_what_is_no_object_is_refused(payload: bytes) -> None:
    """Noise on a topic is a dead letter, never a crash."""
    with pytest.raises(InvalidMessage):
        DeviceEvent.decode(payload)


@pytest.mark.skipif(not HOSTILE.exists(), reason="needs the recorded data folder beside the project")
def test_hostile_documents_are_refused_not_crashed_on() -> None:
    """318 JSON documents that break parsers, and 515 strings that break programs."""
    documents = list((HOSTILE / "JSONTestSuite" / "test_parsing").glob("*.json"))
    assert len(documents) > 300
    for document in documents:
        with pytest.raises(InvalidMessage):
            DeviceEvent.decode(document.read_bytes())
    strings = json.loads(next((HOSTILE / "blns").glob("*.json")).read_text(encoding="utf-8"))
    assert len(strings) > 500
    for text in strings:
        payload = json.dumps(EVENT | {"sku": text}).encode()
        try:
            assert DeviceEvent.decode(payload).sku == text
        except InvalidMessage as error:
            assert "sku" in str(error)  # noqa: PT017 - either outcome is right, but it must be about the SKU


@pytest.mark.parametrize(
    ("quantity", "scale", "text"),
    [
        (2_850, 3, "2.85"),
        (2_000, 3, "2"),
        (-5, 3, "-0.005"),
        (0, 6, "0"),
        (7, 0, "7"),
        (-2_850, 2, "-28.5"),
        (10**12, 6, "1000000"),
    ],
)
def test_a_quantity_is_shown_in_units_and_exactly(quantity: int, scale: int, text: str) -> None:
    """2,850 g of an item in kilograms were shown as 2850 kg."""
    assert shown(quantity, scale) == text

"""Messages: strict about what devices say, tolerant on the link, bounded everywhere."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire_protocol.strategies import EPOCH
from wire_protocol.messages import Ack, DeviceEvent, DeviceReading, DeviceStatus, GatewayStatus, InvalidMessage, Message
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


@pytest.mark.parametrize(
    ("kind", "payload", "name"),
    [
        (DeviceEvent, '{"id":"a","kind":"pick","sku":"x","quantity":2,"quantity":3,"source":"A"}', "quantity"),
        (DeviceEvent, '{"v":1,"v":1,"id":"a","kind":"pick","sku":"x","quantity":2,"source":"A"}', "v"),
        (DeviceEvent, '{"id":"a","kind":"pick","sku":"a:b","quantity":2,"source":"A","s\\u006bu":"x"}', "sku"),
        (DeviceEvent, '{"id":"a","kind":"pick","sku":"x","quantity":2,"source":"A","sku":"a\\u003ab"}', "sku"),
        (DeviceEvent, '{"id" : "a:1","kind":"pick","sku":"x:y","quantity":2,"source":"A:","sku":"::"}', "sku"),
        (DeviceReading, '{"id":"a","values":{"t_c":1,"t_c":2}}', "t_c"),
        (DeviceReading, '{"id":"a","values":{"t_c":1},"values":{"t_c":2,"h_pct":3}}', "values"),
        (DeviceStatus, '{"state":"online","state":"offline"}', "state"),
        (DeviceStatus, '{"state":"online","later":1,"later":2}', "later"),
        (DeviceStatus, '{"state":"online","update":{"release":1,"release":2,"state":"testing"}}', "release"),
        (GatewayStatus, f'{{"state":"online","epoch":"{EPOCH}","version":"1","later":[{{"a":1,"a":2}}]}}', "a"),
    ],
)
def test_a_name_that_stands_twice_is_refused_by_name(kind: type[Message], payload: str, name: str) -> None:
    """A parser takes the last one: what the sender wrote first was lost, and nobody knew which was meant."""
    with pytest.raises(InvalidMessage, match=f"^{name}: the name stands twice"):
        kind.decode(payload.encode())


WORDS = st.sampled_from(["a", "a:b", "::", "\\u003a", "b\\u003ac", "urn:x", '\\"', '\\":\\"'])


@given(st.lists(st.tuples(st.sampled_from(["lot", "actor", "reference", "source"]), WORDS), max_size=4))
def test_no_repetition_escapes_the_count_of_colons(more: list[tuple[str, str]]) -> None:
    """Whatever is in the texts, before and after: a repeated name is refused, and nothing else is."""
    pairs = [("id", "a:1"), ("kind", "pick"), ("sku", "x"), ("source", "A"), *more]
    text = ",".join([f'"{name}":"{value}"' for name, value in pairs] + ['"quantity":2'])
    repeated = len({name for name, _ in pairs}) < len(pairs)
    expected = pytest.raises(InvalidMessage, match="stands twice") if repeated else nullcontext()
    with expected:
        DeviceEvent.decode(f"{{{text}}}".encode())


@pytest.mark.parametrize("sku", ["urn:epc:id:sgtin:1", "a\\b:", '":"', "sku", "x"])
def test_colons_and_escapes_in_texts_are_no_names(sku: str) -> None:
    """What looks for repeated names counts colons first."""
    made = DeviceEvent(id="a:1", kind="pick", sku=sku, quantity=2, source="A:1", reference=":")
    assert DeviceEvent.decode(made.encode()) == made
    assert DeviceEvent.decode(json.dumps(json.loads(made.encode()), indent=1).encode()) == made


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

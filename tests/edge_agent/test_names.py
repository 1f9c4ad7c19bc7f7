"""One form of a name (F13): what looks the same is the same, and an error names the character and where it is."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_agent.errors import BadInput
from edge_agent.ledger.drafts import draft, from_event
from wire_protocol import names
from wire_protocol.entries import ENTRY, Count
from wire_protocol.errors import InvalidName
from wire_protocol.messages import DeviceEvent, InvalidMessage
from wire_protocol.names import gtin, likeness, misspelt, respelt

BAD = {
    "a\u200bb": "U+200B ZERO WIDTH SPACE at position 2",
    "\ufeffa": "U+FEFF ZERO WIDTH NO-BREAK SPACE at position 1",
    "ab\u200e": "U+200E LEFT-TO-RIGHT MARK at position 3",
    "\u2069": "U+2069 POP DIRECTIONAL ISOLATE at position 1",
    "a\u00adb": "U+00AD SOFT HYPHEN at position 2",
    "a\ufe0e": "U+FE0E VARIATION SELECTOR-15 at position 2",
    "a\U000e0100": "U+E0100 VARIATION SELECTOR-17 at position 2",
    "\U000e0061": "U+E0061 TAG LATIN SMALL LETTER A at position 1",
    "a\u034fb": "U+034F COMBINING GRAPHEME JOINER at position 2",
    "a\u3164": "U+3164 HANGUL FILLER at position 2",
    "a\u2800": "U+2800 BRAILLE PATTERN BLANK at position 2",
    "\ufffd": "U+FFFD REPLACEMENT CHARACTER at position 1",
    "a\uf8ffb": "U+F8FF at position 2",
    "a\u0378": "U+0378 at position 2",
    "\U0001ffff": "U+1FFFF at position 1",
    "a\udc80": "U+DC80 at position 2",
    "a\u202fb": "U+202F NARROW NO-BREAK SPACE at position 2",
    "a\u3000b": "U+3000 IDEOGRAPHIC SPACE at position 2",
    "a\tb": "U+0009 CHARACTER TABULATION at position 2",
    "a\x1db": "U+001D GROUP SEPARATOR at position 2",
    "e\u0301": "U+0065 LATIN SMALL LETTER E at position 1",
    "x\u212a": "U+212A KELVIN SIGN at position 2",
    " a": "blank at position 1",
    "a ": "blank at position 2",
    "]E0123": "scanner's mark, ]E0",
    "": "empty",
    "x" * 65: "65 characters",
}
FIELDS = ("sku", "lot", "serial", "reference", "actor", "location")


@pytest.mark.parametrize(
    "name", ["85123A", "tea", "Schraube M4×20", "水", "B 17", "]", "]1", "naïve", "Ω", "👍", "@dock"]
)
def test_the_words_of_customers_are_names(name: str) -> None:
    """Anything that people can read and type again."""
    assert misspelt(name) is None
    assert respelt(name, scanned=True) == name
    assert names.text(name, "SKU") == name


@pytest.mark.parametrize("name", BAD)
def test_another_spelling_is_refused_with_the_character_and_its_place(name: str) -> None:
    """The same at every door, and for every name in an event."""
    assert BAD[name] in (misspelt(name) or "")
    with pytest.raises(InvalidName, match="SKU"):
        names.text(name, "SKU")
    for field in FIELDS:
        fields = {"sku": "tea", "location": "A", field: name}
        with pytest.raises(BadInput) as refused:
            draft("count", fields.pop("sku"), 1, **fields)
        assert str(refused.value).startswith(f"{field}: ")
        assert BAD[name] in str(refused.value)
    for field in ("source", "destination"):
        with pytest.raises(BadInput, match=f"^{field}: "):
            draft("move", "tea", 1, **{"source": "A", "destination": "B", field: name})


@pytest.mark.parametrize("name", [name for name in BAD if 0 < len(name) <= 64 and "\udc80" not in name])
def test_a_device_is_given_the_reason(name: str) -> None:
    """By its receipt, whether the decoder or the draft refuses it."""
    event = DeviceEvent.model_construct(id="e", kind="count", sku=name, quantity=1, location="A")
    with pytest.raises((BadInput, InvalidMessage)) as refused:
        from_event("till-1", DeviceEvent.decode(event.model_dump_json().encode("utf-8", "surrogatepass")))
    assert str(refused.value).startswith("sku: ")
    assert BAD[name] in str(refused.value)


def test_what_was_booked_by_an_older_door_is_still_an_entry() -> None:
    """Ledgers and frames of before have such names, and must merge."""
    for name in ("a\u200bb", "e\u0301", "]C1tea", "a\u00a0b"):
        entry = Count(hlc=1, boot="0" * 26, mono_ms=1, sku=name, quantity=1, location=name)
        assert ENTRY.validate_json(entry.body()) == entry


@given(st.text(max_size=70))
@example("]C1")
@example("]C1 \u00a0")
@example("\x1f]A00")
@example("]C1]C1tea")
@example("\u0958" * 64)
def test_mending_is_settled_and_adds_nothing(name: str) -> None:
    """Mended twice is mended once; what has the one spelling already stays as it is."""
    mended = respelt(name)
    assert respelt(mended) == mended
    if misspelt(name) is None:
        assert mended == name
    if misspelt(mended) is None:
        assert unicodedata.is_normalized("NFC", mended)
        assert mended.encode().decode() == mended
    assert likeness(likeness(name)) == likeness(name)
    assert likeness(mended) == likeness(name)


@pytest.mark.parametrize("digits", ["96385074", "036000291452", "4006381333931", "10012345678902", "00000096385074"])
def test_a_gtin_is_checked_by_its_last_digit(digits: str) -> None:
    """One wrong digit, and two neighbours changed over where the sum shows it, are another number."""
    assert gtin(digits) == digits
    for place, digit in enumerate(digits):
        with pytest.raises(InvalidName, match="last digit"):
            gtin(digits[:place] + str((int(digit) + 1) % 10) + digits[place + 1 :])


@pytest.mark.parametrize("digits", ["", "1", "123456789", "12345678901", "400638133393", "400638133393X", " 96385074"])
def test_what_is_no_gtin_is_refused(digits: str) -> None:
    """Other lengths, other characters, other scripts."""
    with pytest.raises(InvalidName):
        gtin(digits)
    with pytest.raises(InvalidName, match="0 to 9"):
        gtin("".join(chr(0xFF10 + int(digit)) for digit in "96385074"))

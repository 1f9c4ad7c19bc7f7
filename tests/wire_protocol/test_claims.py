"""Claims as people type them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire_protocol.claims import CODE_BYTES, ClaimCode, InvalidClaim
from wire_protocol.names import slug

entropy = st.binary(min_size=CODE_BYTES, max_size=CODE_BYTES)
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


@given(entropy, st.booleans())
def test_a_claim_reads_back_however_it_is_typed(random: bytes, upper: bool) -> None:  # noqa: FBT001 - hypothesis
    """A claim is read aloud, typed with gloves and scanned: case, dashes, blanks and lookalikes must not matter."""
    code = ClaimCode.make(random)
    text = code.text()
    assert slug(code.name, "claim") == code.name
    for typed in (
        text,
        text.replace("-", ""),
        f" {text.replace('-', ' ')}\n",
        text.replace("0", "o").replace("1", "l"),
    ):
        assert ClaimCode.parse(typed.upper() if upper else typed) == code
    assert code.secret not in repr(code)


@given(entropy, st.integers(0, 33), st.sampled_from(ALPHABET))
def test_a_wrong_character_is_noticed_before_anything_is_sent(random: bytes, place: int, wrong: str) -> None:
    """One of a thousand slips through the check; what slips through is refused by the cloud."""
    text = ClaimCode.make(random).text().replace("-", "")
    typed = text[:place] + wrong + text[place + 1 :]
    if typed == text:
        return
    found = parsed(typed)
    if isinstance(found, InvalidClaim):
        assert typed not in str(found)
    else:
        assert found.text().replace("-", "") == typed


@given(st.text(max_size=200))
def test_no_text_breaks_the_reading(text: str) -> None:
    """Whatever is pasted gets a sentence, and the sentence does not repeat it: it may be half a secret."""
    found = parsed(text)
    if isinstance(found, InvalidClaim):
        assert found.hint
        assert len(text) < 5 or text not in str(found)
    else:
        assert ClaimCode.parse(found.text()) == found


def parsed(text: str) -> ClaimCode | InvalidClaim:
    """The claim in a text, or what is wrong with it."""
    try:
        return ClaimCode.parse(text)
    except InvalidClaim as error:
        return error


def test_a_claim_needs_its_randomness() -> None:
    """Less would be guessable."""
    with pytest.raises(InvalidClaim):
        ClaimCode.make(b"short")

"""Reasons with a code, and the sentences of before there were codes."""

from itertools import chain

import pytest

from wire_protocol.messages import Rejected
from wire_protocol.problems import REASON_CHARS_MAX
from wire_protocol.reasons import FirmwareProblemCode, ForkCode, ReasonCode, RefusalCode, RejectCode

KINDS: tuple[type[ReasonCode], ...] = (RejectCode, ForkCode, FirmwareProblemCode, RefusalCode)
CODES = list(chain.from_iterable(KINDS))


@pytest.mark.parametrize("code", CODES)
def test_a_reason_gives_its_code_back(code: ReasonCode) -> None:
    """Whatever the sentence is: a gateway shows it, nobody decides by it."""
    assert type(code).of(code.says("whatever: it may be")) is code
    assert type(code).of(code.says("")) is code


@pytest.mark.parametrize("code", CODES)
def test_a_long_sentence_is_cut_and_never_the_code(code: ReasonCode) -> None:
    """A reason has its bound on the wire."""
    reason = code.says("x" * 1_000)
    assert len(reason) == REASON_CHARS_MAX
    assert type(code).of(Rejected(seq=1, reason=reason).reason) is code


@pytest.mark.parametrize(
    ("kind", "sentence", "code"),
    [
        (RejectCode, "counts already, as entry 7 of epoch 01JD6Z5V0GZZZZZZZZZZZZZZZZ", RejectCode.REPEATED),
        (RejectCode, "counts already", RejectCode.REPEATED),
        (ForkCode, "another frame 7 is already stored", ForkCode.OTHER_FRAME),
        (ForkCode, "the cloud has another frame 7", ForkCode.OTHER_FRAME),
        (ForkCode, "frame 8 does not follow the stored frame 7", ForkCode.NOT_NEXT),
        (ForkCode, "frame 8 begins at entry 9, expected 3", ForkCode.NOT_NEXT),
        (ForkCode, "the cloud has 12 entries of epoch X, which this ledger does not know", ForkCode.UNKNOWN_EPOCH),
        (ForkCode, "the cloud has frame 9, this ledger only 3", ForkCode.LEDGER_BEHIND),
        (ForkCode, "the cloud wants frame 3, which is no longer kept here", ForkCode.NOT_KEPT),
        (ForkCode, "the cloud has lost entries of an older log of this gateway", ForkCode.CLOUD_LOST),
        (ForkCode, "the cloud asked for a new epoch: the disk was swapped", ForkCode.REQUESTED),
        (FirmwareProblemCode, "it cannot be kept here: No space left on device", FirmwareProblemCode.NO_ROOM),
        (FirmwareProblemCode, "the cloud has no such image", FirmwareProblemCode.NO_IMAGE),
        (FirmwareProblemCode, "what came is not what was signed, 3 times", FirmwareProblemCode.WRONG_BYTES),
        (RefusalCode, "device till-1 is not registered at this gateway", RefusalCode.UNKNOWN_DEVICE),
    ],
)
def test_old_sentences_are_still_understood(kind: type[ReasonCode], sentence: str, code: ReasonCode) -> None:
    """Ledgers, databases and gateways of before have them without a code."""
    assert kind.of(sentence) is code


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reason", ["", "quantity: Input should be a valid integer", "of-tomorrow: a new code"])
def test_what_is_not_known_has_no_code(kind: type[ReasonCode], reason: str) -> None:
    """A newer end may have codes that are unknown here; nobody guesses."""
    assert kind.of(reason) is None

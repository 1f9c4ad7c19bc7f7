"""Reasons with a code: the code is what programs decide by, the sentence after it is what people read.

On the wire and in the stores a reason is one text, `code: sentence`; in memory a state is the code. Ends of before
there were codes wrote the sentence alone: `of` still understands those by which a receiver decides.

Invariant: a code never changes its name, and no code decides by a sentence.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Self

from wire_protocol.problems import REASON_CHARS_MAX


class ReasonCode(StrEnum):
    """Base of every kind of code."""

    def says(self, sentence: str) -> str:
        """The reason as it is sent and stored; the sentence is cut where it is too long."""
        return f"{self.value}: {sentence}"[:REASON_CHARS_MAX]

    @classmethod
    def of(cls, reason: str) -> Self | None:
        """The code of a reason; None for one that is not known here."""
        head = reason.partition(": ")[0]
        if head in cls._value2member_map_:
            return cls(head)
        old = (code for sentence, code in _OLD_SENTENCES.get(cls, {}).items() if re.match(sentence, reason))
        code = next(old, None)
        return None if code is None else cls(code)


class RejectCode(ReasonCode):
    """Why the cloud does not count an entry (`Rejected.reason`)."""

    REPEATED = "repeated"
    """Another log of the gateway has the same event, and it counts there."""
    INVALID = "invalid"
    UNREADABLE = "unreadable"
    """Its frame is whole, and what is inside cannot be read."""
    UNSTORABLE = "unstorable"
    WRONG_STREAM = "wrong-stream"
    OUT_OF_DOMAIN = "out-of-domain"
    """The stock of its cell would be beyond `stock.BALANCE_MAX`."""


class ForkCode(ReasonCode):
    """Why a gateway's log is not the one that the cloud has (`Ack.fork`, and what a ledger keeps of it)."""

    OTHER_FRAME = "other-frame"
    """There are two frames of one number."""
    NOT_NEXT = "not-next"
    """A frame does not follow the one that is stored."""
    UNKNOWN_EPOCH = "unknown-epoch"
    """A new epoch does not know an older log of its gateway."""
    LEDGER_BEHIND = "ledger-behind"
    """The cloud has frames that this ledger has not written yet."""
    NOT_KEPT = "not-kept"
    """The cloud asks for a frame that the gateway keeps no more."""
    CLOUD_LOST = "cloud-lost"
    """The cloud has lost entries of an older log."""
    REQUESTED = "requested"
    """An operator asked for a new epoch."""


class FirmwareProblemCode(ReasonCode):
    """Why a gateway does not have an image (`ReportedFirmware.problem_code`; its `problem` is the sentence alone)."""

    NO_ROOM = "no-room"
    NO_IMAGE = "no-image"
    WRONG_BYTES = "wrong-bytes"


class RefusalCode(ReasonCode):
    """Why a gateway does not take a device's event (`Refusal.reason`)."""

    UNKNOWN_DEVICE = "unknown-device"
    ID_USED = "id-used"
    """The ledger has something else under this id of the device."""


# What was written without a code: regular expressions, matched from the start.
_OLD_SENTENCES: Final[Mapping[type[ReasonCode], Mapping[str, ReasonCode]]] = {
    RejectCode: {"counts already": RejectCode.REPEATED},
    ForkCode: {
        r"another frame \d+ is already stored|the cloud has another frame \d+": ForkCode.OTHER_FRAME,
        r"frame \d+ (does not follow|begins at entry)": ForkCode.NOT_NEXT,
        r"the cloud has \d+ entries of epoch": ForkCode.UNKNOWN_EPOCH,
        r"the cloud has frame \d+, this ledger only": ForkCode.LEDGER_BEHIND,
        r"the cloud wants frame \d+, which is no longer kept here": ForkCode.NOT_KEPT,
        r"the cloud has lost entries": ForkCode.CLOUD_LOST,
        r"the cloud asked for a new epoch": ForkCode.REQUESTED,
    },
    FirmwareProblemCode: {
        "it cannot be kept here": FirmwareProblemCode.NO_ROOM,
        "the cloud has no such image": FirmwareProblemCode.NO_IMAGE,
        "what came is not what was signed": FirmwareProblemCode.WRONG_BYTES,
    },
    RefusalCode: {r"device \S+ is not registered at this gateway": RefusalCode.UNKNOWN_DEVICE},
}

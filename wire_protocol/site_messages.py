"""What travels about the logs of a site: a gateway asks, the cloud passes down frames and says where the logs end.

On `down/ledger` a payload is a run of pieces, so that a batch of small frames is one message: a line of JSON with a
line feed, and behind the line of a frame the frame itself, byte for byte, as long as the line says.

Invariant: as in `messages`: a payload is read whole or refused.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from pydantic import Field

from wire_protocol import names
from wire_protocol.frames import FRAME_BYTES_MAX, FRAME_ENTRIES_MAX
from wire_protocol.messages import Count, Digest, InvalidMessage, Message, Part, TimeMs

SITE_LOGS_MAX: Final = 256
PIECES_BYTES_MAX: Final = 320 * 1024
# What is packed together, unless one frame alone is larger: it fits the packets of every broker that was ever rendered.
PACK_BYTES_TARGET: Final = 192 * 1024
_LINE_END: Final = b"\n"


class LogCursor(Part):
    """How far somebody has a log: the run of ledger entries of one gateway in one epoch. Frame 0 is nothing.

    `digest` is that frame's, where the cloud tells how far it is.
    """

    gateway: names.GatewayName
    epoch: names.Ulid
    frame: Count
    seq: Count = 0
    digest: Digest | None = None


class SiteRequest(Message):
    """A gateway asks for the frames of its site's logs, its own older ones included, after what it has.

    `own` is the log it writes itself, which it need not be sent; absent when it asks for that too. A log of which
    nothing more is wanted is named with a frame that is greater than any.
    """

    bytes_max: ClassVar[int] = 64 * 1024

    own: names.Ulid | None = None
    logs: Annotated[tuple[LogCursor, ...], Field(max_length=SITE_LOGS_MAX)] = ()


class SiteHeads(Message):
    """The end of an answer: where every log of the site stands in the cloud; `more` says to ask again at once."""

    bytes_max: ClassVar[int] = 64 * 1024

    heads: Annotated[tuple[LogCursor, ...], Field(max_length=SITE_LOGS_MAX)]
    now_ms: TimeMs
    more: bool = False

    def encode(self) -> bytes:
        """A piece of a payload."""
        return super().encode() + _LINE_END


class SiteFrameLine(Message):
    """The line before a frame of another log of the site, as the cloud has merged it; `bytes` is the frame's length.

    `rejected` are the entries that do not count, for whatever reason: all gateways of a site must leave out the same.
    """

    gateway: names.GatewayName
    received_ms: TimeMs
    rejected: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=FRAME_ENTRIES_MAX)] = ()
    bytes: Annotated[int, Field(ge=1, le=FRAME_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class SiteFrame:
    """A frame with what its line says of it. The frame itself is not looked at here."""

    gateway: str
    received_ms: int
    frame: bytes
    rejected: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """A piece of a payload."""
        line = SiteFrameLine(
            gateway=self.gateway, received_ms=self.received_ms, rejected=self.rejected, bytes=len(self.frame)
        )
        return line.encode() + _LINE_END + self.frame


def pack(pieces: Iterable[bytes], bytes_max: int = PACK_BYTES_TARGET) -> Iterator[bytes]:
    """Join encoded pieces into few payloads, in their order; one has more than `bytes_max` only for a larger piece."""
    bytes_max = min(bytes_max, PACK_BYTES_TARGET)
    payload: list[bytes] = []
    size = 0
    for piece in pieces:
        if payload and size + len(piece) > bytes_max:
            yield b"".join(payload)
            payload, size = [], 0
        payload.append(piece)
        size += len(piece)
    if payload:
        yield b"".join(payload)


def unpack(payload: bytes) -> list[SiteFrame | SiteHeads]:
    """The pieces of a payload.

    Raises:
        InvalidMessage: a line is not what it should be, or a frame is cut off.
    """
    if len(payload) > PIECES_BYTES_MAX:
        raise InvalidMessage(f"{len(payload)} bytes; frames come in at most {PIECES_BYTES_MAX}.")
    pieces: list[SiteFrame | SiteHeads] = []
    at = 0
    while at < len(payload):
        end = payload.find(_LINE_END, at)
        if end < 0:
            raise InvalidMessage("The line before a frame has no end.")
        line, at = payload[at:end], end + 1
        if at == len(payload):
            pieces.append(SiteHeads.decode(line))
            break
        said = SiteFrameLine.decode(line)
        frame, at = payload[at : at + said.bytes], at + said.bytes
        if len(frame) < said.bytes:
            raise InvalidMessage(f"A frame of {said.bytes} bytes is cut off after {len(frame)}.")
        pieces.append(SiteFrame(said.gateway, said.received_ms, frame, said.rejected))
    return pieces

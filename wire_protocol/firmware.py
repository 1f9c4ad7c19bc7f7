"""Firmware images: what is signed, what is asked for piece by piece, and when a device may take one.

A **release** is a signed statement: this image (size and SHA-256) is this version for this model of device, and it is
the release number so and so. Numbers only grow, and a device never takes one that is not greater than the greatest it
has taken: whatever was recorded on a network is worth nothing the second time. Going back to an older version is a
release as well, with a number of its own, that names the version which it replaces.

Invariant: pure functions of their arguments; names here are never part of a path.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, StringConstraints

from wire_protocol import names
from wire_protocol.messages import Count, Digest, InvalidMessage, Message, Part, Reason

IMAGE_BYTES_MAX: Final = 16 * 1024 * 1024
MODELS_MAX: Final = 8
LINK_CHUNK_BYTES: Final = 32 * 1024
DEVICE_CHUNK_BYTES: Final = 8 * 1024
CHUNK_BYTES_MAX: Final = 64 * 1024
FAILED_SHOWN_MAX: Final = 50
NO_ROOM: Final = "it cannot be kept here"
"""How the words of `FirmwareProblemCode.NO_ROOM` begin: of ends without codes, the only sign that it may pass."""
_LINE_END: Final = b"\n"

Model = Annotated[str, StringConstraints(pattern=names.SLUG_PATTERN)]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}(?:\.[0-9]{1,6}){1,3}$")]
Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
Size = Annotated[int, Field(ge=1, le=IMAGE_BYTES_MAX)]
Offset = Annotated[int, Field(ge=0, lt=IMAGE_BYTES_MAX)]


class Manifest(Part):
    """What is signed. `replaces` is the version that this one, being older, is to take back."""

    model: Model
    version: Version
    release: Annotated[int, Field(ge=1, lt=1 << 62)]
    size: Size
    sha256: Digest
    replaces: Version | None = None

    def signed_bytes(self) -> bytes:
        """What the Ed25519 signature (RFC 8032) is of. No field can hold a line feed, so no two manifests agree."""
        fields = (self.model, self.version, self.release, self.size, self.sha256, self.replaces or "")
        return "".join(f"{field}\n" for field in ("stocktide firmware 1", *fields)).encode()


class Release(Manifest):
    """A manifest with its signature, 64 bytes in hexadecimal."""

    signature: Signature


class FirmwareOffer(Message, Release):
    """A release as it is retained for a device on its gateway's broker; its image can be asked for there."""

    @classmethod
    def of(cls, release: Release) -> Self:
        """The offer of a release."""
        return cls(**{name: getattr(release, name) for name in Release.model_fields})


class FirmwareRequest(Message):
    """Asks for a piece of an image: by a device at its gateway, and by a gateway at the cloud."""

    sha256: Digest
    offset: Offset
    bytes: Annotated[int, Field(ge=1, le=CHUNK_BYTES_MAX)]


class FirmwareChunkLine(Message):
    """The line before a piece of an image. `digest` is the piece's own SHA-256.

    Without a piece behind it, it says that there is no such image: with `size` 0.
    """

    sha256: Digest
    offset: Offset
    size: Annotated[int, Field(ge=0, le=IMAGE_BYTES_MAX)]
    digest: Digest


@dataclass(frozen=True, slots=True)
class FirmwareChunk:
    """A piece of an image: a line of JSON with a line feed, and the bytes. Whether they are right is for the reader."""

    line: FirmwareChunkLine
    piece: bytes

    bytes_max: ClassVar[int] = CHUNK_BYTES_MAX + 1024

    def encode(self) -> bytes:
        """The payload to publish."""
        return self.line.encode() + _LINE_END + self.piece

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Parse a payload.

        Raises:
            InvalidMessage: too large, without a line, or the piece reaches beyond the image.
        """
        if len(payload) > cls.bytes_max:
            raise InvalidMessage(f"{len(payload)} bytes; a piece of an image has at most {cls.bytes_max}.")
        head, found, piece = payload.partition(_LINE_END)
        if not found:
            raise InvalidMessage("The line before a piece of an image has no end.")
        line = FirmwareChunkLine.decode(head)
        if line.offset + len(piece) > line.size:
            raise InvalidMessage("A piece of an image reaches beyond its end.")
        return cls(line, piece)


class ReportedFirmware(Part):
    """How far a gateway's devices of one model are with the release that the twin wants.

    `devices` are all of that model, `healthy` those that work with it, `failed` those that never will, by name.
    `fetched` is how many bytes of the image are at the gateway, `problem` why it cannot be had, in words, and
    `problem_code` the same for programs (`reasons.FirmwareProblemCode`). Gateways of before there were codes say the
    words alone, and older workers decide by them: that is why the code is beside the text and not in front of it.
    """

    release: Count
    version: Version
    fetched: Count = 0
    devices: Count = 0
    healthy: Count = 0
    failed: Annotated[dict[names.DeviceName, Reason], Field(default_factory=dict, max_length=FAILED_SHOWN_MAX)]
    problem: Reason | None = None
    problem_code: Annotated[str, StringConstraints(pattern=names.SLUG_PATTERN)] | None = None


def is_newer(version: str, than: str) -> bool:
    """Whether a version comes after another: number by number, 1.10 after 1.9, and 1.2 is 1.2.0."""
    return _numbers(version) > _numbers(than)


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in version.split(".")]
    return tuple(numbers + [0] * (4 - len(numbers)))


def refusal(offered: Manifest, *, model: str, running: str, release: int, size_max: int) -> str | None:
    """Why a device must not take a release whose signature is right; None when it may.

    Args:
        offered: what is offered.
        model: what the device is.
        running: the version that it runs.
        release: the greatest release number that it has ever taken.
        size_max: how much fits a slot, bytes.
    """
    if offered.model != model:
        return f"it is for {offered.model}, and this is a {model}"
    if offered.release <= release:
        return f"release {offered.release} is not newer than {release}, which was taken already"
    if offered.size > size_max:
        return f"it has {offered.size} bytes, and a slot {size_max}"
    older = is_newer(running, offered.version)
    if older and offered.replaces != running:
        return f"{offered.version} is older than {running}, and its signature does not say that it takes that back"
    return None

"""The payload of every topic, versioned and bounded.

Messages a device sends are checked strictly, unknown fields included: a misspelt optional field must not be lost in
silence. Messages on the link ignore unknown fields, so that old gateways and new workers understand each other.

Invariant: `decode` returns a whole, valid message or raises InvalidMessage; nothing is guessed or coerced.
"""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wire_protocol import PROTOCOL_VERSION, names
from wire_protocol.claims import SECRET_PATTERN
from wire_protocol.entries import EntryKind, Quantity, QuantityOrZero, ReadingValues
from wire_protocol.errors import WireError
from wire_protocol.problems import REASON_CHARS_MAX, first_problem
from wire_protocol.proof import StockDigest
from wire_protocol.topics import Stream

EPOCH_MS_MAX: Final = (1 << 47) - 1
TWIN_CHARS_MAX: Final = 48 * 1024  # in the answer to a claim

TimeMs = Annotated[int, Field(ge=0, le=EPOCH_MS_MAX)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Reason = Annotated[str, StringConstraints(max_length=REASON_CHARS_MAX)]
PartName = Annotated[str, StringConstraints(pattern=names.SLUG_PATTERN)]
VersionText = Annotated[str, StringConstraints(max_length=64)]
# Why no certificate was given: the first five are final, after `busy` and `unavailable` it pays to ask again.
Refused = Literal["unknown", "used", "expired", "other-gateway", "revoked", "invalid", "busy", "unavailable"]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class InvalidMessage(WireError, ValueError):
    """A payload is not a valid message."""


class Message(BaseModel):
    """Base of all messages: version 1, encoded as compact JSON, at most `bytes_max` bytes."""

    # As in `entries`: built at first use.
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="ignore")
    bytes_max: ClassVar[int] = 8 * 1024

    v: Literal[1] = PROTOCOL_VERSION

    def encode(self) -> bytes:
        """The payload to publish."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Parse a payload.

        Raises:
            InvalidMessage: too large, not JSON, a missing, wrong or (from a device) unknown field, another version.
        """
        if len(payload) > cls.bytes_max:
            raise InvalidMessage(f"{len(payload)} bytes; a {cls.__name__} has at most {cls.bytes_max}.")
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            raise InvalidMessage(first_problem(error)) from None


class _Strict(Message):
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")


class Part(BaseModel):
    """Base of what is inside messages."""

    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="ignore")


# --- devices, on the gateway's own broker -----------------------------------------------------------------------


class DeviceEvent(_Strict):
    """A scan: one movement or one count.

    `id` is unique per device, for its whole life: a device sends an event again, with the same id, until it gets a
    receipt, and the ledger takes it once. Locations that follow from the kind (`@supplier`, `@customer`, …) may be left
    out.

    `age_ms` is how long ago it happened, at this sending, by a clock that runs on and is never set: each sending has
    its own. It gives the event its place among what was booked meanwhile; `at_ms`, the device's wall clock when it
    happened, is kept and shown only.
    """

    id: names.EventId
    kind: EntryKind
    sku: names.Sku
    quantity: QuantityOrZero
    source: names.LocationName | None = None
    destination: names.LocationName | None = None
    location: names.LocationName | None = None
    lot: names.Lot | None = None
    serial: names.Serial | None = None
    actor: names.Actor | None = None
    reference: names.Reference | None = None
    at_ms: TimeMs | None = None
    age_ms: TimeMs | None = None


class DeviceReading(_Strict):
    """What a sensor measured, up to 16 values at once; units are the end of each name (`temperature_c`).

    `at_ms` and `age_ms` as in `DeviceEvent`.
    """

    id: names.EventId
    values: ReadingValues
    at_ms: TimeMs | None = None
    age_ms: TimeMs | None = None


class UpdateState(StrEnum):
    """Where a device is with a release; the last two are final."""

    DOWNLOADING = "downloading"
    TESTING = "testing"
    HEALTHY = "healthy"
    ROLLED_BACK = "rolled-back"
    REFUSED = "refused"


class UpdateStatus(Part):
    """Where a device is with a release of its firmware (`wire_protocol.firmware`), and why it did not take it."""

    release: Count
    state: UpdateState
    reason: Reason | None = None


class DeviceStatus(Message):
    """Whether a device is there; its last will says `offline`.

    `config_version` is the configuration it works with; `config_problem` says why it cannot work with a newer one.
    `firmware` is the version that runs. A device whose firmware can be exchanged says its `model`, and in `update`
    where it is with the latest release that it was offered.
    """

    state: Literal["online", "offline"]
    firmware: VersionText | None = None
    model: Annotated[str, StringConstraints(pattern=names.SLUG_PATTERN)] | None = None
    update: UpdateStatus | None = None
    battery_pct: Annotated[int, Field(ge=0, le=100)] | None = None
    config_version: Count | None = None
    config_problem: Reason | None = None
    at_ms: TimeMs | None = None


class Refusal(Part):
    """An event the ledger did not take, and why; it is kept as a dead letter at the gateway."""

    id: names.EventId
    reason: Reason


class DeviceReceipt(Message):
    """Event ids that are durably in the ledger, or refused: the device may forget both."""

    bytes_max: ClassVar[int] = 64 * 1024

    committed: Annotated[tuple[names.EventId, ...], Field(max_length=500)] = ()
    refused: Annotated[tuple[Refusal, ...], Field(max_length=100)] = ()


class DeviceCommand(Message):
    """A gateway asks a device to blink and beep for some seconds, so that a technician finds it."""

    name: Literal["locate"] = "locate"
    seconds: Annotated[int, Field(ge=1, le=3600)]


# --- the link between gateway and cloud -------------------------------------------------------------------------


class Rejected(Part):
    """An entry the cloud could not use, quarantined with its reason; the rest of its frame is merged.

    `reason` begins with a code (`reasons.RejectCode`), except from a cloud of before there were codes.
    """

    seq: Annotated[int, Field(ge=1)]
    reason: Reason


class ClampedTime(Part):
    """An entry whose time lay outside what the cloud believes, and the time it was given instead."""

    seq: Annotated[int, Field(ge=1)]
    at_ms: TimeMs


class Ack(Message):
    """Cumulative, and sent after the commit: every frame of the epoch's stream up to `frame` is durable in the cloud.

    `digest` is that frame's, so that a ledger with another history under the same numbers finds out before it believes
    a word. `want` asks for the frames from that number on; `fork` says that the gateway's history is not the one the
    cloud has, that frames are being quarantined, and that the gateway must fetch the cloud's and open a new epoch; it
    begins with a code (`reasons.ForkCode`).
    """

    bytes_max: ClassVar[int] = 256 * 1024

    stream: Stream
    epoch: names.Ulid | None = None
    frame: Count
    seq: Count
    now_ms: TimeMs
    window: Annotated[int, Field(ge=0, le=1024)]
    rejected: Annotated[tuple[Rejected, ...], Field(max_length=1000)] = ()
    want: Annotated[int, Field(ge=1)] | None = None
    fork: Reason | None = None
    digest: Digest | None = None
    bounded: Annotated[tuple[ClampedTime, ...], Field(max_length=1000)] = ()


class StreamStatus(Part):
    """Where one stream of a gateway stands."""

    last_seq: Count
    sealed_frame: Count
    acked_frame: Count
    acked_seq: Count


class ClockStatus(Part):
    """How wrong the gateway's wall clock is: cloud time minus gateway time at the last acknowledgement."""

    boot: names.Ulid
    offset_ms: int | None = None


class GatewayStatus(Message):
    """A gateway announces itself on contact and then regularly; `offline` is its last will.

    `arrived` is true in the first one of a contact; the cloud answers with where the gateway's streams stand.
    `stock` is the digest of its balances at a moment when everything was in a frame. `problems` are what is wrong at
    the gateway, in words, by part: its own broker, its certificate, its file; absent when all is well.
    """

    bytes_max: ClassVar[int] = 32 * 1024

    state: Literal["online", "offline"]
    epoch: names.Ulid
    arrived: bool = False
    version: VersionText
    at_ms: TimeMs | None = None
    streams: dict[Stream, StreamStatus] = {}
    clock: ClockStatus | None = None
    dead_letters: Count = 0
    readings_dropped: Count = 0
    devices_online: Count = 0
    stock: StockDigest | None = None
    problems: Annotated[dict[PartName, Reason], Field(max_length=8)] | None = None


class Command(Message):
    """A request to a gateway; executed once although delivered twice, and never after `expires_ms`."""

    id: names.EventId
    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,47}$")]
    arguments: Annotated[dict[str, str | int | bool], Field(max_length=32)] = {}
    expires_ms: TimeMs


class Reply(Message):
    """The result of a command, by its id."""

    bytes_max: ClassVar[int] = 256 * 1024

    id: names.EventId
    ok: bool
    reason: Reason | None = None
    result: dict[str, Any] = {}


class ClaimRequest(Message):
    """An unenrolled gateway presents its one-time claim and a certificate signing request (PEM).

    The topic names the claim, `secret` proves it. `gateway` is absent when whatever gateway the claim is for will do.
    """

    gateway: names.GatewayName | None = None
    secret: Annotated[str, StringConstraints(pattern=SECRET_PATTERN)]
    csr_pem: Annotated[str, StringConstraints(max_length=4096)]
    nonce: names.EventId


class Issued(Message):
    """A gateway's certificate and where to connect with it, or the refusal and its reason in words.

    `ca_pem` is every authority to be trusted, `brokers` are mqtts:// addresses in the order of preference.
    """

    bytes_max: ClassVar[int] = 64 * 1024

    nonce: names.EventId
    gateway: names.GatewayName | None = None
    certificate_pem: Annotated[str, StringConstraints(max_length=8192)] | None = None
    ca_pem: Annotated[str, StringConstraints(max_length=16_384)] | None = None
    brokers: Annotated[tuple[Annotated[str, StringConstraints(max_length=300)], ...], Field(max_length=8)] = ()
    refusal: Refused | None = None
    reason: Reason | None = None


class ClaimResponse(Issued):
    """The answer to a ClaimRequest.

    `twin` is the gateway's desired twin as it would come on its topic, so that the gateway knows its devices before its
    first contact. It is taken or refused by itself, and left out when it is too large for one message; the first
    contact brings it then.
    """

    twin: Annotated[str, StringConstraints(max_length=TWIN_CHARS_MAX)] | None = None


class CertificateRequest(Message):
    """An enrolled gateway asks for its next certificate, for a new key (certificate signing request, PEM)."""

    csr_pem: Annotated[str, StringConstraints(max_length=4096)]
    nonce: names.EventId


class CertificateResponse(Issued):
    """The answer to a CertificateRequest."""


__all__ = [
    "Ack",
    "ClaimRequest",
    "ClaimResponse",
    "ClampedTime",
    "ClockStatus",
    "Command",
    "DeviceCommand",
    "DeviceEvent",
    "DeviceReading",
    "DeviceReceipt",
    "DeviceStatus",
    "GatewayStatus",
    "InvalidMessage",
    "Issued",
    "Message",
    "Quantity",
    "Refusal",
    "Rejected",
    "Reply",
    "StreamStatus",
    "UpdateState",
    "UpdateStatus",
]

r"""Frames: immutable, hash-chained runs of ledger entries.

A frame is one JSON object `{v, stream, epoch, frame, first_seq, count, prev, boots, replay, entries}` in a zlib stream
(RFC 1950), whose checksum finds damage; plain JSON is read as well, for experiments. It is sealed once, when it is
first sent, kept, and re-sent byte for byte.

`entries` is columnar: one list for each field, one value where all rows agree, nothing where none has the field.
Neighbouring values resemble each other far more than neighbouring fields do, which is what zlib compresses. Times are
stored as differences: `ms` and `tick` are the two halves of the hybrid logical clock, `drift_ms` is clock minus
monotonic time, constant while the clock is not set and nothing is late. A column that a receiver does not know is
passed over.

`prev` is the BLAKE2b-256 (RFC 7693) of the frame before, so the chain shows both tampering and a gateway that was
restored from an old backup. The digest is of the JSON inside: the padding bits at the end of a zlib stream are covered
by no checksum, and a flip there must not look like another history.

`boots` and the monotonic clock of each entry give its true time: see `FrameHeader`. `after` is in the first frame of an
epoch that follows another of the same gateway, and says how much of the older logs this ledger knows.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wire_protocol import PROTOCOL_VERSION, clock, names, strict_json
from wire_protocol.entries import Count, Movement, Reading
from wire_protocol.errors import InvalidFrame
from wire_protocol.messages import EPOCH_MS_MAX, Digest
from wire_protocol.problems import first_problem
from wire_protocol.topics import Stream

FRAME_BYTES_MAX: Final = 256 * 1024
FRAME_DECODED_BYTES_MAX: Final = 2 * 1024 * 1024
FRAME_ENTRIES_MAX: Final = 500
# What a header and an entry with every field at its bound can need: a frame that is larger has something else in it.
ENVELOPE_BYTES_MAX: Final = 16 * 1024
ENTRY_BYTES_MAX: Final = 4 * 1024
BOOTS_MAX: Final = 64
COMPRESSION_LEVEL: Final = 9

EPOCHS_MAX: Final = 64

BootMs = Annotated[int, Field(ge=-EPOCH_MS_MAX, le=EPOCH_MS_MAX)]

_FIELDS: Final = (
    "kind",
    "sku",
    "lot",
    "serial",
    "quantity",
    "source",
    "destination",
    "location",
    "values",
    "device",
    "event",
    "actor",
    "reference",
    "boot",
)
_SELDOM: Final = ("late_ms", "time_doubt")
_DELTAS: Final = ("ms", "device_at_ms")
_CLOCK: Final = ("ms", "tick", "drift_ms")
COLUMNS: Final = frozenset(_FIELDS) | frozenset(_SELDOM) | frozenset(_DELTAS) | frozenset(_CLOCK)


class LogHead(BaseModel):
    """The last frame of a log that a receiver has: its number and its digest."""

    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="ignore")

    frame: Annotated[int, Field(ge=1, lt=1 << 62)]
    digest: Digest


class FrameHeader(BaseModel):
    """What the receiver needs to judge a frame before it looks at the entries.

    `boots` maps each boot id in the frame to the true time (Unix, milliseconds) at which its monotonic clock was zero,
    as the cloud's acknowledgements gave it: with an entry's `mono_ms` it gives the entry's true time, whatever the
    wall clock said then. `replay` says that the entries were recorded before this contact. `after` maps older epochs of
    the gateway to how far the ledger knows them. `carried` says that some of the entries were taken over from an older
    epoch, because the cloud did not have them there.
    """

    # Strict about what nobody knows: the cloud keeps frames as they came, and passes them to the whole site.
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")

    v: Literal[1] = PROTOCOL_VERSION
    stream: Stream
    epoch: names.Ulid
    frame: Annotated[int, Field(ge=1, lt=1 << 62)]
    first_seq: Annotated[int, Field(ge=1, lt=1 << 62)]
    count: Annotated[int, Field(ge=1, le=FRAME_ENTRIES_MAX)]
    prev: Digest
    boots: Annotated[dict[names.Ulid, BootMs], Field(max_length=BOOTS_MAX)] = {}
    replay: bool = False
    after: Annotated[dict[names.Ulid, LogHead], Field(max_length=EPOCHS_MAX)] = {}
    carried: bool = False

    @property
    def last_seq(self) -> int:
        """The sequence number of the frame's last entry."""
        return self.first_seq + self.count - 1


@dataclass(frozen=True)
class Frame:
    """A decoded frame: header, the digest the next frame must name, and the columns of its entries, not yet validated.

    A reader of many frames takes the columns as they are; one that wants entry by entry takes the `rows`.
    """

    header: FrameHeader
    digest: str
    columns: object

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One dictionary for each entry; none where there is a `problem`."""
        return self._rows_or_problem[0]

    @cached_property
    def problem(self) -> str | None:
        """Why the rows cannot be read at all.

        The frame still has its place in the chain, so it is merged with every entry rejected instead of stopping its
        stream.
        """
        return self._rows_or_problem[1]

    @cached_property
    def _rows_or_problem(self) -> tuple[list[dict[str, Any]], str | None]:
        try:
            return _from_columns(self.columns, self.header.count), None
        except InvalidFrame as error:
            return [], str(error)


def digest(encoded: bytes) -> str:
    """The link of the hash chain: BLAKE2b-256 of the JSON in an encoded frame, in hexadecimal.

    Raises:
        InvalidFrame: it cannot be decompressed.
    """
    return _hash(_decompress(encoded))


def genesis(gateway: str, epoch: str, stream: Stream) -> str:
    """The `prev` of the first frame of an epoch."""
    return _hash(f"stocktide/v1/{gateway}/{epoch}/{stream}".encode())


def _hash(plain: bytes) -> str:
    return hashlib.blake2b(plain, digest_size=32).hexdigest()


def seal(header: FrameHeader, entries: Sequence[Movement | Count | Reading]) -> bytes:
    """Encode a frame, once.

    Raises:
        InvalidFrame: the entries do not fit the header or the size bound (the caller seals fewer).
    """
    if len(entries) != header.count:
        raise InvalidFrame(f"The header counts {header.count} entries, {len(entries)} were given.")
    envelope = header.model_dump(exclude_defaults=True) | {"v": header.v, "entries": _to_columns(entries)}
    plain = json.dumps(envelope, separators=(",", ":"), ensure_ascii=False).encode()
    # What does not get smaller is stored uncompressed, but in zlib's envelope all the same: its checksum tells a frame
    # that was damaged on the way from one that says something else.
    encoded = min(zlib.compress(plain, COMPRESSION_LEVEL), zlib.compress(plain, 0), key=len)
    if len(encoded) > FRAME_BYTES_MAX or len(plain) > FRAME_DECODED_BYTES_MAX:
        raise InvalidFrame(f"{len(encoded)} bytes; a frame has at most {FRAME_BYTES_MAX}.", hint="Seal fewer entries.")
    return encoded


def decode(encoded: bytes) -> Frame:
    """Decode a frame that arrived from outside; nothing in it is trusted.

    Raises:
        InvalidFrame: too large (also after decompression), not JSON, or a bad header.
    """
    plain = _decompress(encoded)
    try:
        envelope = json.loads(plain)
        if plain.count(b":") != _names_in(envelope):
            strict_json.load(plain)
    except strict_json.RepeatedName as error:
        raise InvalidFrame(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise InvalidFrame(f"A frame is not JSON: {error}"[:200]) from None
    if not isinstance(envelope, dict):
        raise InvalidFrame("A frame is a JSON object.")
    columns = envelope.pop("entries", None)
    try:
        header = FrameHeader.model_validate(envelope)
    except ValidationError as error:
        raise InvalidFrame(first_problem(error)) from None
    if len(encoded) > (limit := ENVELOPE_BYTES_MAX + header.count * ENTRY_BYTES_MAX):
        raise InvalidFrame(f"{len(encoded)} bytes; a frame of {header.count} entries has at most {limit}.")
    if isinstance(columns, dict) and (unknown := columns.keys() - COLUMNS):
        raise InvalidFrame(f"Nobody knows the column {min(unknown)[:40]!r} in version {PROTOCOL_VERSION}.")
    return Frame(header, _hash(plain), columns)


def _names_in(envelope: Any) -> int:
    """How many names a frame of ours has, each with a colon; another number means colons in texts, or a repetition."""
    if not isinstance(envelope, dict):
        return 0
    boots, columns = envelope.get("boots"), envelope.get("entries")
    values = columns.get("values") if isinstance(columns, dict) else None
    rows = values if isinstance(values, list) and set(map(type, values)) == {dict} else ()
    return (
        len(envelope)
        + sum(len(each) for each in (boots, columns, values) if isinstance(each, dict))
        + sum(map(len, rows))
    )


def _decompress(encoded: bytes) -> bytes:
    if len(encoded) > FRAME_BYTES_MAX:
        raise InvalidFrame(f"{len(encoded)} bytes; a frame has at most {FRAME_BYTES_MAX}.")
    if encoded[:1] == b"{":
        return encoded
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(encoded, FRAME_DECODED_BYTES_MAX)
    except zlib.error as error:
        raise InvalidFrame(f"A frame cannot be decompressed: {error}") from None
    if not inflater.eof or inflater.unused_data:
        raise InvalidFrame("A frame is cut short, has bytes after its end, or is too large when decompressed.")
    return plain


def _to_columns(entries: Sequence[Movement | Count | Reading]) -> dict[str, Any]:
    rows = [entry.model_dump(exclude_none=True) for entry in entries]
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in _FIELDS}
    if [row for row in rows if "late_ms" in row or "time_doubt" in row]:
        columns |= {name: [row.get(name) for row in rows] for name in _SELDOM}
    hlcs = [entry.hlc for entry in entries]
    columns["ms"] = [clock.wall_ms(hlc) for hlc in hlcs]
    columns["tick"] = [clock.counter(hlc) for hlc in hlcs]
    columns["drift_ms"] = [clock.wall_ms(entry.hlc) - entry.mono_ms for entry in entries]
    columns["device_at_ms"] = [entry.device_at_ms for entry in entries]
    for name in _DELTAS:
        if None not in columns[name]:
            columns[name] = [columns[name][0], *(after - before for before, after in pairwise(columns[name]))]
    return {name: _fold(values) for name, values in columns.items() if any(value is not None for value in values)}


def _fold(values: list[Any]) -> Any:
    """One value where all rows agree (a list is never a value), the list otherwise."""
    return values[0] if all(value == values[0] for value in values) else values


def rows_at(frame: Frame, places: Sequence[int]) -> list[dict[str, Any]]:
    """Some of a frame's rows, by their place from 0.

    Raises:
        InvalidFrame: the frame has no rows.
    """
    return _from_columns(frame.columns, frame.header.count, places)


def _from_columns(columns: object, count: int, places: Sequence[int] | None = None) -> list[dict[str, Any]]:
    if not isinstance(columns, dict):
        raise InvalidFrame("The entries of a frame are an object of columns.")
    unfolded = {name: _unfold(name, values, count) for name, values in columns.items() if name in COLUMNS}
    for name in _DELTAS:
        # A delta column with gaps was stored as it is; the first row's value was kept whole.
        if name in unfolded and None not in unfolded[name]:
            unfolded[name] = _integrate(name, unfolded[name])
    unfolded |= _restore_clock(unfolded, count)
    fields = [name for name in unfolded if name not in _CLOCK]
    if places is not None:
        unfolded = {name: [unfolded[name][place] for place in places] for name in fields}
    rows = zip(*(unfolded[name] for name in fields), strict=True)
    return [{name: value for name, value in zip(fields, row, strict=True) if value is not None} for row in rows]


def _unfold(name: str, values: object, count: int) -> list[Any]:
    if not isinstance(values, list):
        return [values] * count
    if len(values) != count:
        raise InvalidFrame(f"Column {name} has {len(values)} values for {count} entries.")
    return values


def _integrate(name: str, values: list[Any]) -> list[int]:
    if not all(type(value) is int for value in values):
        raise InvalidFrame(f"Column {name} is not made of integers.")
    return list(accumulate(values))


def _restore_clock(columns: Mapping[str, list[Any]], count: int) -> dict[str, list[int]]:
    ms, tick, drift = (columns.get(name, [0] * count) for name in _CLOCK)
    try:
        return {
            "hlc": [clock.pack(wall, low) for wall, low in zip(ms, tick, strict=True)],
            "mono_ms": [wall - skew for wall, skew in zip(ms, drift, strict=True)],
        }
    except (TypeError, ValueError):
        raise InvalidFrame("The clock columns are not made of integers.") from None

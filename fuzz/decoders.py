"""Every decoder that a stranger can reach, and valid payloads to begin from.

Invariant: a decoder returns or raises `WireError`, whatever it is given; anything else is a defect.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from wire_protocol import (
    catalog,
    clock,
    commands,
    entries,
    firmware,
    frames,
    messages,
    names,
    site_messages,
    topics,
    twin,
)
from wire_protocol.entries import Movement
from wire_protocol.frames import FrameHeader
from wire_protocol.proof import StockDigest

Decoder: TypeAlias = Callable[[bytes], object]

_NOW_MS: Final = 1_790_000_000_000
_ULID: Final = names.ulid(_NOW_MS, bytes(10))
_MESSAGES: Final = (
    messages.Ack,
    messages.CertificateRequest,
    messages.CertificateResponse,
    messages.ClaimRequest,
    messages.ClaimResponse,
    messages.Command,
    messages.DeviceCommand,
    messages.DeviceEvent,
    messages.DeviceReading,
    messages.DeviceReceipt,
    messages.DeviceStatus,
    messages.GatewayStatus,
    messages.Reply,
    site_messages.SiteRequest,
    twin.DesiredTwin,
    twin.DeviceConfig,
    twin.ReportedTwin,
    catalog.CatalogRequest,
    catalog.CatalogPage,
    firmware.FirmwareRequest,
    firmware.FirmwareOffer,
)


def frame(payload: bytes) -> object:
    """A frame, with its entries."""
    return entries.validate(frames.decode(payload).rows)


def command(payload: bytes) -> object:
    """A command, with its arguments."""
    made = messages.Command.decode(payload)
    return commands.parse(made.name, made.arguments)


def topic(payload: bytes) -> object:
    """A topic."""
    return topics.parse(payload.decode(errors="replace"))


DECODERS: Final[Mapping[str, Decoder]] = {
    "frame": frame,
    "command": command,
    "topic": topic,
    "site": site_messages.unpack,
    "image": firmware.FirmwareChunk.decode,
    **{message.__name__: message.decode for message in _MESSAGES},
}


def samples() -> dict[str, list[bytes]]:
    """Valid payloads by decoder."""
    entry = Movement(
        hlc=clock.pack(_NOW_MS),
        boot=_ULID,
        mono_ms=7,
        kind="move",
        sku="SKU-1",
        quantity=3,
        source="A",
        destination="B",
        device="scanner-1",
        event="1-1",
    )
    header = FrameHeader(stream="ledger", epoch=_ULID, frame=1, first_seq=1, count=2, prev="0" * 64, boots={_ULID: 5})
    sealed = frames.seal(header, [entry, entry])
    state = twin.merged({}, {"devices": {"p-1": {"kind": "probe", "calibration": {"t_c": {"factor": 2.0}}}}})
    at = catalog.CatalogPosition(version=3, key="iSKU-1")
    item = catalog.CatalogItem(sku="SKU-1", name="Milk", gtin="4006381333931", reorder_point=3)
    heads = site_messages.SiteHeads(heads=(), now_ms=_NOW_MS)
    release = firmware.FirmwareOffer(
        model="probe-x",
        version="1.2.0",
        release=_NOW_MS,
        size=3,
        sha256="a" * 64,
        replaces="1.3.0",
        signature="b" * 128,
    )
    line = firmware.FirmwareChunkLine(sha256="a" * 64, offset=0, size=3, digest="c" * 64)
    update = messages.UpdateStatus(
        release=_NOW_MS, state=messages.UpdateState.ROLLED_BACK, reason="not healthy in time"
    )
    told = firmware.ReportedFirmware(release=_NOW_MS, version="1.2.0", devices=2, healthy=1, failed={"p-2": "no"})
    proof = StockDigest(position="0" * 16, digest="1" * 16, cells=1)
    made: dict[str, Any] = {
        "Ack": messages.Ack(stream="ledger", epoch=_ULID, frame=1, seq=2, window=16, now_ms=_NOW_MS),
        "Command": messages.Command(id="c-1", name="recount", arguments={"location": "A"}, expires_ms=_NOW_MS),
        "DeviceEvent": messages.DeviceEvent(id="1-1", kind="pick", sku="SKU-1", quantity=1, source="A"),
        "DeviceReading": messages.DeviceReading(id="1-1", values={"temperature_c": 4.5}),
        "DeviceReceipt": messages.DeviceReceipt(committed=("1-1",)),
        "DeviceStatus": messages.DeviceStatus(state="online", config_version=3, model="probe-x", update=update),
        "GatewayStatus": messages.GatewayStatus(state="online", epoch=_ULID, version="1", at_ms=_NOW_MS, stock=proof),
        "Reply": messages.Reply(id="c-1", ok=True, result={"a": [1, {"b": None}]}),
        "SiteRequest": site_messages.SiteRequest(own=_ULID),
        "DesiredTwin": twin.DesiredTwin(version=1, state=state),
        "DeviceConfig": twin.DeviceConfig(version=1, sampling_s=3),
        "ReportedTwin": twin.ReportedTwin(
            version=1, confirmed={"p-1": 1}, errors={"p-2": "no"}, firmware={"probe-x": told}
        ),
        "FirmwareRequest": firmware.FirmwareRequest(sha256="a" * 64, offset=0, bytes=3),
        "FirmwareOffer": release,
        "CatalogRequest": catalog.CatalogRequest(after=at),
        "CatalogPage": catalog.CatalogPage(after=at, upto=at, head=3, items=(item,), locations=("A-1",)),
    }
    piece = site_messages.SiteFrame("gw-1", _NOW_MS, sealed, (2,))
    return {
        # The second without compression, where turning a bit changes a word and not a checksum.
        "frame": [sealed, zlib.decompress(sealed)],
        "site": [piece.encode() + heads.encode()],
        "image": [firmware.FirmwareChunk(line, b"abc").encode()],
        "topic": [topics.up("gw-1", "ledger").encode(), b"stocktide/v1/dev/scanner-1/event"],
        "command": [made["Command"].encode()],
        **{name: [message.encode()] for name, message in made.items()},
    }

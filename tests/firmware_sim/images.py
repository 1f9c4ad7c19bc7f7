"""Signed releases, and flash memory whose power can be cut at any write."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from firmware_sim.firmware.flash import Record, Slot
from firmware_sim.firmware.updater import Updater
from firmware_sim.fleet.trust import TrustedKey
from wire_protocol.firmware import FirmwareChunk, FirmwareChunkLine, FirmwareOffer, Manifest

MODEL = "probe-x"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
FACTORY = "1.0.0"


class PowerCut(Exception):
    """The device has no power any more."""


@dataclass
class CutFlash:
    """Flash memory that loses its power before its `cut`th write from now; an image's piece may be written in part."""

    kept: Record = field(default_factory=lambda: Record(factory=FACTORY))
    slots: dict[Slot, bytearray] = field(default_factory=lambda: {"a": bytearray(), "b": bytearray()})
    cut: int | None = None
    torn: float = 0.0

    def record(self) -> Record:
        return self.kept

    def keep(self, record: Record) -> None:
        self._spend()
        self.kept = record

    def write(self, slot: Slot, offset: int, piece: bytes) -> None:
        try:
            self._spend()
        except PowerCut:
            self._put(slot, offset, piece[: int(len(piece) * self.torn)])
            raise
        self._put(slot, offset, piece)

    def read(self, slot: Slot, size: int) -> bytes:
        return bytes(self.slots[slot][:size])

    def _put(self, slot: Slot, offset: int, piece: bytes) -> None:
        body = self.slots[slot]
        body.extend(bytes(max(0, offset + len(piece) - len(body))))
        body[offset : offset + len(piece)] = piece

    def _spend(self) -> None:
        if self.cut is None:
            return
        if self.cut == 0:
            self.cut = None
            raise PowerCut
        self.cut -= 1


def image(version: str, size: int = 20_000, line: bytes = b"") -> bytes:
    """An image that is different for each version."""
    seed = hashlib.sha256(version.encode()).digest()
    return (line + seed * (size // len(seed) + 1))[:size]


def release(
    version: str, number: int, body: bytes | None = None, *, key: Ed25519PrivateKey = KEY, **changes: Any
) -> FirmwareOffer:
    """A signed release of an image."""
    body = image(version) if body is None else body
    fields = {
        "model": MODEL,
        "version": version,
        "release": number,
        "size": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    manifest = Manifest.model_validate(fields | changes)
    return FirmwareOffer(**manifest.model_dump(), signature=key.sign(manifest.signed_bytes()).hex())


def piece(body: bytes, offset: int, size: int, *, of: str | None = None, digest: str | None = None) -> FirmwareChunk:
    """A piece of an image, honest unless told otherwise."""
    part = body[offset : offset + size]
    line = FirmwareChunkLine(
        sha256=of or hashlib.sha256(body).hexdigest(),
        offset=offset,
        size=len(body),
        digest=digest or hashlib.sha256(part).hexdigest(),
    )
    return FirmwareChunk(line, part)


def device(flash: CutFlash | None = None, **options: Any) -> Updater:
    """A device that has just been switched on."""
    trusted = TrustedKey(KEY.public_key())
    made = Updater(model=MODEL, flash=flash or CutFlash(), trusted=trusted.signed, **options)
    made.power_on(0)
    return made


def fetch(updater: Updater, body: bytes, now_ms: int = 0) -> int:
    """Answer every ask of a device honestly; returns how many there were."""
    asks = 0
    while (ask := updater.ask(now_ms)) is not None:
        asks += 1
        updater.chunk(piece(body, ask.offset, ask.bytes), now_ms)
    return asks

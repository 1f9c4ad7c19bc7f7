"""What a device keeps through power cuts: two slots for images, and one record about them.

Invariant: the record is written whole or not at all. A piece of an image may be cut off in the middle of its write; the
record counts it only afterwards.
"""

import os
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from firmware_sim.errors import BadInput
from wire_protocol.firmware import Release, Version
from wire_protocol.messages import UpdateStatus

Slot: TypeAlias = Literal["a", "b"]
RECORD: Final = "record.json"


class Record(BaseModel):
    """Everything that decides what is booted.

    Attributes:
        factory: the version that came from the factory, in slot a.
        active: the slot whose image was healthy last; never written to.
        installed: the image of each slot; None is the factory's, or nothing that may be booted.
        trial: whether the other slot is to be booted, and `boots` how often it was.
        release: the greatest release number ever taken, and `outcome` what became of it.
        download: what is being fetched into the other slot, of which `received` bytes are there; `attempts` at it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factory: Version
    active: Slot = "a"
    installed: dict[Slot, Release | None] = {"a": None, "b": None}
    trial: bool = False
    boots: Annotated[int, Field(ge=0)] = 0
    release: Annotated[int, Field(ge=0)] = 0
    outcome: UpdateStatus | None = None
    download: Release | None = None
    received: Annotated[int, Field(ge=0)] = 0
    attempts: Annotated[int, Field(ge=0)] = 0

    @property
    def other(self) -> Slot:
        """The slot that is not active."""
        return "b" if self.active == "a" else "a"


class Flash(Protocol):
    """Memory that outlives a power cut."""

    def record(self) -> Record: ...

    def keep(self, record: Record) -> None:
        """Replace the record."""

    def write(self, slot: Slot, offset: int, piece: bytes) -> None:
        """Write a piece of an image."""

    def read(self, slot: Slot, size: int) -> bytes:
        """The first bytes of a slot."""


class FolderFlash:
    """Flash memory in a folder: a process that is killed is a device that lost its power."""

    def __init__(self, folder: Path, factory: str) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / RECORD).exists():
            self.keep(Record(factory=factory))

    def record(self) -> Record:
        try:
            return Record.model_validate_json((self._folder / RECORD).read_bytes())
        except ValidationError:
            raise BadInput(f"{self._folder / RECORD} is not a device's record.") from None

    def keep(self, record: Record) -> None:
        new = self._folder / f"{RECORD}.new"
        with new.open("wb") as file:
            file.write(record.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._folder / RECORD)

    def write(self, slot: Slot, offset: int, piece: bytes) -> None:
        with self._image(slot).open("r+b" if self._image(slot).exists() else "w+b") as file:
            file.seek(offset)
            file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def read(self, slot: Slot, size: int) -> bytes:
        try:
            with self._image(slot).open("rb") as file:
                return file.read(size)
        except FileNotFoundError:
            return b""

    def _image(self, slot: Slot) -> Path:
        return self._folder / f"{slot}.img"

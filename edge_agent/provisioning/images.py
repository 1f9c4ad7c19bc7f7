"""Firmware images on this gateway's disk, in a folder beside the ledger: whole ones, and one that is being fetched.

    ledger.firmware/            0700
      9c1f….img                 0600, an image whose hash is its name
      5b0e….part                0600, what has come of one so far

Invariants: what ends in `.img` has the SHA-256 of its name; a piece is on the disk before the next is asked for; at
most `IMAGES_KEPT_MAX` images are kept.
"""

import contextlib
import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from edge_agent import files
from wire_protocol.firmware import MODELS_MAX, Manifest

IMAGES_KEPT_MAX: Final = MODELS_MAX
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ImageStore:
    """The folder. Names are hashes that were checked before: no other name ever becomes part of a path."""

    folder: Path

    @classmethod
    def beside(cls, ledger: Path) -> Self:
        """The folder of a ledger's gateway."""
        return cls(ledger.with_suffix(".firmware"))

    def has(self, image: Manifest) -> bool:
        """Whether the whole image is here."""
        return self._whole(image.sha256).exists()

    def fetched(self, image: Manifest) -> int:
        """How many bytes of it are here. A part is never all of it: without its last piece it was not checked."""
        return image.size if self.has(image) else min(_size(self._part(image.sha256)), image.size - 1)

    def add(self, image: Manifest, offset: int, piece: bytes) -> bool:
        """Put the next piece of an image on the disk. Returns whether it is whole now, and what was signed.

        A whole one that is not what was signed is thrown away, to be fetched from its beginning.
        """
        files.make_folder(self.folder, 0o700)
        part = self._part(image.sha256)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            file.seek(offset)
            file.truncate()
            file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if offset + len(piece) < image.size:
            return False
        if _digest(part) != image.sha256:
            part.unlink()
            return False
        part.replace(self._whole(image.sha256))
        return True

    def read(self, sha256: str, offset: int, size: int) -> tuple[int, bytes]:
        """The size of an image, and a piece of it; 0 and nothing when it is not here."""
        try:
            with self._whole(sha256).open("rb") as file:
                file.seek(offset)
                return os.fstat(file.fileno()).st_size, file.read(size)
        except FileNotFoundError:
            return 0, b""

    def forget(self, sha256: str) -> None:
        """Throw an image away, so that it is fetched again."""
        with contextlib.suppress(OSError):
            self._whole(sha256).unlink()

    def check(self) -> None:
        """Throw away what is not what was signed any more; reads everything, so it is for the agent's start."""
        for whole in self.folder.glob("*.img") if self.folder.is_dir() else ():
            with contextlib.suppress(OSError):
                if _digest(whole) == whole.stem:
                    continue
            self.forget(whole.stem)

    def tidy(self, wanted: Collection[str]) -> None:
        """Delete parts that no release wants, and of the images the oldest that no release wants."""
        if not self.folder.is_dir():
            return
        for part in self.folder.glob("*.part"):
            if part.stem not in wanted:
                part.unlink()
        images = sorted(self.folder.glob("*.img"), key=lambda path: path.stat().st_mtime, reverse=True)
        unwanted = [image for image in images if image.stem not in wanted]
        for image in unwanted[max(0, IMAGES_KEPT_MAX - len(wanted)) :]:
            image.unlink()

    def _whole(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.img"

    def _part(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.part"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _digest(path: Path) -> str:
    made = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            made.update(block)
    return made.hexdigest()

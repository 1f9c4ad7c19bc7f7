"""Firmware images on the link: asked for piece by piece, one piece at a time, from where the disk is.

Invariant: what comes is taken only if it is the piece that is missing next, of an image that the twin wants.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from edge_agent.ledger.database import Connection
from edge_agent.link.contact import Contact
from edge_agent.provisioning import firmware
from edge_agent.provisioning.firmware import ImageProblem
from edge_agent.provisioning.images import ImageStore
from edge_agent.signals import Signals
from wire_protocol.firmware import LINK_CHUNK_BYTES, NO_ROOM, FirmwareChunk, FirmwareRequest, Release, ReportedFirmware
from wire_protocol.poll_timer import PollTimer
from wire_protocol.reasons import FirmwareProblemCode

LOOK_MS: Final = 60_000  # how often an image is asked for again that could not be had
FETCHES_MAX: Final = 3

log = structlog.get_logger("edge_agent.link.uplink")


@dataclass(slots=True)
class FirmwareSync:
    """One gateway's images.

    Args:
        reader: a read-only connection to the ledger.
        shelf: where images are kept.
        now_ms: the senders' time.
        reported: called when there is something to report.
        signals: `firmware_changed` is sent when an image is whole, and when the twin has changed.
    """

    reader: Connection
    image_store: ImageStore
    now_ms: Callable[[], int]
    signals: Signals
    reported: Callable[[], None] = lambda: None
    timer: PollTimer = field(default_factory=lambda: PollTimer(interval_ms=LOOK_MS))
    _problems: dict[str, ImageProblem] = field(default_factory=dict)
    _fetches: dict[str, int] = field(default_factory=dict)

    def report(self) -> dict[str, ReportedFirmware]:
        """How far devices are, by model."""
        return firmware.reported(self.reader, self.image_store, self._problems)

    def twin_changed(self) -> None:
        """Other releases may be wanted."""
        self.image_store.tidy(self._wanted())
        self._problems.clear()
        self._fetches.clear()
        self.signals.firmware_changed.send()
        self.timer.poll_now(self.now_ms())

    def question(self) -> FirmwareRequest | None:
        """What to ask the cloud for now; None when nothing is due."""
        if not self.timer.due(self.now_ms()):
            return None
        release = self._missing()
        if release is None:
            self.timer.answered(self.now_ms(), more=False)
            return None
        offset = self.image_store.fetched(release)
        return FirmwareRequest(sha256=release.sha256, offset=offset, bytes=min(LINK_CHUNK_BYTES, release.size - offset))

    async def receive(self, _contact: Contact, payload: bytes) -> None:
        """Part of `Uplink.on`."""
        if await self.take(FirmwareChunk.decode(payload)):
            self.reported()

    async def take(self, chunk: FirmwareChunk) -> bool:
        """Take a piece. Returns whether there is something to report."""
        release, line = self._missing(), chunk.line
        if release is None or line.sha256 != release.sha256:
            return False
        if not line.size:
            return self._give_up(release, FirmwareProblemCode.NO_IMAGE, "the cloud has no such image")
        right = (
            line.size == release.size
            and line.offset == self.image_store.fetched(release)
            and 0 < len(chunk.piece) <= LINK_CHUNK_BYTES
            and hashlib.sha256(chunk.piece).hexdigest() == line.digest
        )
        if not right:
            return False  # a repetition, or damaged: it is asked for again
        try:
            whole = await asyncio.to_thread(self.image_store.add, release, line.offset, chunk.piece)
        except OSError as error:
            return self._give_up(release, FirmwareProblemCode.NO_ROOM, f"{NO_ROOM}: {error.strerror}")
        return self._added(release, whole=whole)

    def _added(self, release: Release, *, whole: bool) -> bool:
        """A piece is on the disk. Returns whether there is something to report."""
        if release.sha256 not in (wanted := self._wanted()):
            self.image_store.tidy(wanted)  # the twin has changed while the piece was written: it must not stay
            return False
        if not whole and not self.image_store.fetched(release):
            self._fetches[release.sha256] = self._fetches.get(release.sha256, 0) + 1
            if self._fetches[release.sha256] >= FETCHES_MAX:
                sentence = f"what came is not what was signed, {FETCHES_MAX} times"
                return self._give_up(release, FirmwareProblemCode.WRONG_BYTES, sentence)
        if whole:
            log.info("firmware_fetched", model=release.model, version=release.version, bytes=release.size)
            self._problems.pop(release.sha256, None)
            self.signals.firmware_changed.send()
        self.timer.answered(self.now_ms(), more=True)
        return whole

    def _wanted(self) -> set[str]:
        return {release.sha256 for release in firmware.wanted(self.reader).values()}

    def _missing(self) -> Release | None:
        """The image to fetch; those that could not be had come last."""
        lacking = [release for release in firmware.wanted(self.reader).values() if not self.image_store.has(release)]
        return min(lacking, key=lambda release: release.sha256 in self._problems, default=None)

    def _give_up(self, release: Release, code: FirmwareProblemCode, sentence: str) -> bool:
        """For now: it is asked for again after a while."""
        log.warning("firmware_not_fetched", model=release.model, version=release.version, code=code, reason=sentence)
        self._problems[release.sha256] = ImageProblem(code, sentence)
        self._fetches.pop(release.sha256, None)
        others = [each for each in firmware.wanted(self.reader).values() if each.sha256 not in self._problems]
        self.timer.answered(self.now_ms(), more=any(not self.image_store.has(each) for each in others))
        return True

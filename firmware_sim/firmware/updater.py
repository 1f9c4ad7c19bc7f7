"""A device's way from one firmware to the next: two slots, a resumed download, a trial, and the way back. Sans-I/O.

What runs is in the active slot, which is never written to. An image is fetched into the other one, is checked against
its hash and the signature, and is then booted on trial. It becomes the active one when it says that it is healthy; else
the old one is booted again.

Invariants, at whatever instant the power is cut: there is a slot that can be booted; nothing is booted but what came
from the factory, or whose hash and signature were right when it was booted first; a release is taken once.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from firmware_sim.firmware.flash import Flash, Record, Slot
from wire_protocol.firmware import (
    DEVICE_CHUNK_BYTES,
    IMAGE_BYTES_MAX,
    FirmwareChunk,
    FirmwareOffer,
    FirmwareRequest,
    Release,
    refusal,
)
from wire_protocol.messages import UpdateState, UpdateStatus

TRIAL_BOOTS_MAX: Final = 3
DOWNLOADS_MAX: Final = 3
HEALTH_MS: Final = 30_000
ASK_AGAIN_MS: Final = 2_000
ASK_AGAIN_MS_MAX: Final = 60_000


@dataclass(slots=True, kw_only=True)
class Updater:
    """One device's boot loader and update agent.

    Args:
        model: what the device is.
        flash: what outlives a power cut.
        trusted: whether a release is signed by the key that the device was made to trust.
        slot_bytes: how much fits a slot.
        health_ms: how long a new image may take to say that it is healthy, milliseconds of the link's clock.
    """

    model: str
    flash: Flash
    trusted: Callable[[Release], bool]
    slot_bytes: int = IMAGE_BYTES_MAX
    health_ms: int = HEALTH_MS
    running: Slot = "a"
    ignored: int = 0
    """Pieces that belonged nowhere."""
    _record: Record = field(init=False)
    _said: UpdateStatus | None = None
    """The answer to an offer that is kept nowhere, because the next power-on brings the offer again."""
    _later: FirmwareOffer | None = None
    _deadline_ms: int | None = None
    _ask_ms: int | None = None
    _asked: int = 0
    _trial_runs: bool = False
    """Whether the boot loader has started the image on trial, and has not given it up since."""

    def __post_init__(self) -> None:
        self._record = self.flash.record()
        self.running = self._record.active  # until `power_on` says what runs

    @property
    def version(self) -> str:
        """The version that runs."""
        return self._version(self.running)

    @property
    def on_trial(self) -> bool:
        """Whether what runs has yet to show that it is healthy."""
        return self.running != self._record.active

    @property
    def restart_wanted(self) -> bool:
        """Whether something else is to be booted than what runs."""
        return self._record.trial is not self.on_trial

    def status(self) -> UpdateStatus | None:
        """Where this device is with the latest release that it was offered."""
        if self._record.trial:
            return UpdateStatus(release=self._record.release, state=UpdateState.TESTING)
        if self._record.download is not None:
            return UpdateStatus(release=self._record.download.release, state=UpdateState.DOWNLOADING)
        return self._said or self._record.outcome

    def image(self) -> bytes:
        """The image that runs; empty for the factory's."""
        installed = self._record.installed[self.running]
        return b"" if installed is None else self.flash.read(self.running, installed.size)

    def power_on(self, now_ms: int) -> None:
        """What the boot loader does: decide which slot runs."""
        self._record = record = self.flash.record()
        self._said = self._later = self._deadline_ms = None
        self._trial_runs = False
        self._asked, self._ask_ms = 0, now_ms
        if record.trial:
            if record.boots >= TRIAL_BOOTS_MAX:
                self._give_up(f"restarted {record.boots} times before it was healthy")
            elif not self._proven(record.installed[record.other]):
                self._give_up("the image has changed after it was checked")
            else:
                self._keep(boots=record.boots + 1)
                self._deadline_ms = now_ms + self.health_ms
        self._trial_runs = self._record.trial
        self.running = self._record.other if self._record.trial else self._record.active

    def healthy(self, now_ms: int) -> bool:
        """What runs says that it works. Returns whether that has made it the active image.

        Only an image that `power_on` has started on trial, and that was not given up since, becomes active. At any
        other moment nothing changes: before the trial boot, before `power_on`, twice, after the image was given up.
        When its time has run out and nobody has called `tick` yet, it is given up now.
        """
        self.tick(now_ms)
        if not self._trial_runs:
            return False
        outcome = UpdateStatus(release=self._record.release, state=UpdateState.HEALTHY)
        self._keep(active=self._record.other, trial=False, boots=0, outcome=outcome)
        self._deadline_ms, self._trial_runs = None, False
        self._take_later(now_ms)
        return True

    def offer(self, offered: FirmwareOffer, now_ms: int) -> None:
        """Begin to fetch a release, if it may be taken."""
        record = self._record
        if record.trial or self.restart_wanted:
            self._later = offered  # one slot is on trial and the other the way back: neither may be written to
            return
        if not self.trusted(offered):
            self._refuse(offered, "its signature is not by the key that this device trusts")
            return
        if offered.release == record.release or self._is_installed(offered):
            self._stay(offered)
            return
        under_way = record.download
        if under_way is not None and offered.release <= under_way.release:
            return
        reason = refusal(
            offered, model=self.model, running=self.version, release=record.release, size_max=self.slot_bytes
        )
        if reason is not None:
            self._refuse(offered, reason)
        elif self._is_running(offered):
            outcome = UpdateStatus(release=offered.release, state=UpdateState.HEALTHY)
            self._said = None
            self._keep(release=offered.release, outcome=outcome, download=None, received=0)
        else:
            self._said = None
            installed = record.installed | {record.other: None}
            self._keep(download=_plain(offered), received=0, attempts=0, installed=installed)
            self._asked, self._ask_ms = 0, now_ms

    def withdraw(self) -> None:
        """The offer was taken back: what was not fetched to its end is not wanted any more."""
        self._later = self._said = None
        self._abandon()

    def ask(self, now_ms: int) -> FirmwareRequest | None:
        """The piece to ask for now; again, ever less often, when no answer comes."""
        wanted = self._record.download
        if wanted is None or self._ask_ms is None or now_ms < self._ask_ms:
            return None
        left = wanted.size - self._record.received
        if not left:
            self._finish(wanted, now_ms)  # the power was cut after the last piece
            return None
        self._ask_ms = now_ms + min(ASK_AGAIN_MS << min(self._asked, 16), ASK_AGAIN_MS_MAX)
        self._asked += 1
        return FirmwareRequest(sha256=wanted.sha256, offset=self._record.received, bytes=min(left, DEVICE_CHUNK_BYTES))

    def chunk(self, chunk: FirmwareChunk, now_ms: int) -> None:
        """Take the piece that was asked for; any other is passed over."""
        wanted, line = self._record.download, chunk.line
        if (
            wanted is None
            or (line.sha256, line.size, line.offset) != (wanted.sha256, wanted.size, self._record.received)
            or not 0 < len(chunk.piece) <= DEVICE_CHUNK_BYTES
            or hashlib.sha256(chunk.piece).hexdigest() != line.digest
        ):
            self.ignored += 1
            return
        self.flash.write(self._record.other, line.offset, chunk.piece)
        self._keep(received=line.offset + len(chunk.piece))
        self._asked, self._ask_ms = 0, now_ms
        if self._record.received == wanted.size:
            self._finish(wanted, now_ms)

    def tick(self, now_ms: int) -> None:
        """Let time pass: an image on trial that is not healthy in time is given up."""
        if self._deadline_ms is not None and now_ms >= self._deadline_ms:
            self._give_up(f"not healthy within {self.health_ms / 1_000:g} s")
            self._deadline_ms = None

    def next_ms(self) -> int | None:
        """When there is something to do again, by the link's clock."""
        asks = self._ask_ms if self._record.download is not None else None
        return min((at for at in (asks, self._deadline_ms) if at is not None), default=None)

    def _finish(self, wanted: Release, now_ms: int) -> None:
        """Everything is here: put it on trial if it is what was signed."""
        if self._proven(wanted):
            self._keep(
                installed=self._record.installed | {self._record.other: wanted},
                download=None,
                received=0,
                trial=True,
                boots=0,
                release=wanted.release,
                outcome=None,
            )
        elif self._record.attempts + 1 < DOWNLOADS_MAX:
            self._keep(received=0, attempts=self._record.attempts + 1)
            self._ask_ms = now_ms
        else:
            # Not noted as taken: a sender of wrong pieces must not keep the right ones away forever.
            self._keep(download=None, received=0)
            self._refuse(wanted, f"the image does not match what was signed, {DOWNLOADS_MAX} times")

    def _proven(self, release: Release | None) -> bool:
        """Whether the other slot holds what was signed."""
        if release is None:
            return False
        body = self.flash.read(self._record.other, release.size)
        return (
            len(body) == release.size
            and hashlib.sha256(body).hexdigest() == release.sha256
            and release.model == self.model
            and self.trusted(release)
        )

    def _give_up(self, reason: str) -> None:
        outcome = UpdateStatus(release=self._record.release, state=UpdateState.ROLLED_BACK, reason=reason)
        self._keep(trial=False, boots=0, outcome=outcome)
        self._trial_runs = False

    def _take_later(self, now_ms: int) -> None:
        later, self._later = self._later, None
        if later is not None:
            self.offer(later, now_ms)

    def _stay(self, offered: Release) -> None:
        """A release that was taken before is wanted: a newer one under way is not. What became of it stands."""
        self._abandon()
        taken_last = offered.release == self._record.release
        self._said = None if taken_last else UpdateStatus(release=offered.release, state=UpdateState.HEALTHY)

    def _abandon(self) -> None:
        """Forget what was fetched so far: its slot holds nothing that may be booted."""
        if self._record.download is not None:
            self._keep(download=None, received=0, attempts=0)

    def _is_installed(self, offered: Release) -> bool:
        """Whether this very release runs, and is not on trial."""
        installed = self._record.installed[self.running]
        return installed is not None and installed.release == offered.release and not self.on_trial

    def _refuse(self, offered: Release, reason: str) -> None:
        self._said = UpdateStatus(release=offered.release, state=UpdateState.REFUSED, reason=reason)

    def _is_running(self, offered: Release) -> bool:
        installed = self._record.installed[self.running]
        if installed is None:
            return self._record.factory == offered.version
        return (installed.version, installed.sha256) == (offered.version, offered.sha256)

    def _version(self, slot: Slot) -> str:
        installed = self._record.installed[slot]
        return self._record.factory if installed is None else installed.version

    def _keep(self, **changes: Any) -> None:
        made = self._record.model_copy(update=changes)
        self.flash.keep(made)
        self._record = made


def _plain(offered: FirmwareOffer) -> Release:
    """A release without what makes it a message."""
    return Release(**{name: getattr(offered, name) for name in Release.model_fields})

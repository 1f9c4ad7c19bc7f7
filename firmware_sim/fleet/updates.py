"""A device's updates on its link: which messages they are, and how a simulated image behaves.

An image whose first line is `stocktide-sim never-healthy` or `stocktide-sim crashes` does so; any other is healthy as
soon as it has reached its gateway.
"""

from dataclasses import dataclass
from typing import Final

from firmware_sim.fleet.device import SimulatedDevice
from wire_protocol.firmware import FirmwareChunk, FirmwareOffer, FirmwareRequest
from wire_protocol.messages import UpdateStatus
from wire_protocol.topics import Channel

NEVER_HEALTHY: Final = b"stocktide-sim never-healthy\n"
CRASHES: Final = b"stocktide-sim crashes\n"


@dataclass(slots=True)
class UpdateLink:
    """What a link does about its unit's updater, if it has one."""

    unit: SimulatedDevice
    _said: UpdateStatus | None = None

    @property
    def channels(self) -> tuple[Channel, ...]:
        """What else to subscribe to."""
        return () if self.unit.updater is None else (Channel.DEVICE_FIRMWARE_CHUNK, Channel.DEVICE_FIRMWARE)

    @property
    def version(self) -> str | None:
        return None if self.unit.updater is None else self.unit.updater.version

    @property
    def model(self) -> str | None:
        return None if self.unit.updater is None else self.unit.updater.model

    def status(self) -> UpdateStatus | None:
        """The update's part of the status message; read whenever the status is published."""
        self._said = None if self.unit.updater is None else self.unit.updater.status()
        return self._said

    def news(self) -> bool:
        """Whether the update has a state that was not published yet."""
        return self.unit.updater is not None and self.unit.updater.status() != self._said

    def booted(self, now_ms: int) -> None:
        """Start what is to run; an image that crashes does so until the boot loader gives it up."""
        updater = self.unit.updater
        if updater is None:
            return
        self.unit.started(now_ms)
        updater.tick(now_ms)
        if updater.restart_wanted:
            self.unit.restart(now_ms)
        while updater.on_trial and updater.image().startswith(CRASHES):
            self.unit.restart(now_ms)

    def reached(self, now_ms: int) -> None:
        """The gateway was reached: that is what these images call healthy."""
        updater = self.unit.updater
        if updater is not None and not updater.image().startswith(NEVER_HEALTHY):
            updater.healthy(now_ms)

    def restart_wanted(self, now_ms: int) -> bool:
        """Whether another image is to run than does."""
        updater = self.unit.updater
        if updater is None:
            return False
        updater.tick(now_ms)
        return updater.restart_wanted

    def ask(self, now_ms: int) -> FirmwareRequest | None:
        """The piece to ask for now."""
        return None if self.unit.updater is None else self.unit.updater.ask(now_ms)

    def next_ms(self) -> int | None:
        """When there is something to do again."""
        return None if self.unit.updater is None else self.unit.updater.next_ms()

    def take(self, channel: Channel, payload: bytes, now_ms: int) -> None:
        """Take an offer or a piece.

        Raises:
            InvalidMessage: it is neither.
        """
        updater = self.unit.updater
        if updater is None:
            return
        if channel is Channel.DEVICE_FIRMWARE_CHUNK:
            updater.chunk(FirmwareChunk.decode(payload), now_ms)
        elif payload:
            updater.offer(FirmwareOffer.decode(payload), now_ms)
        else:
            updater.withdraw()

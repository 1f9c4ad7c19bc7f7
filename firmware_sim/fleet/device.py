"""One simulated device: its firmware and the air around it. Sans-I/O; `link.py` gives it a connection."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from firmware_sim.faults.radio import RadioChannel, Stage
from firmware_sim.firmware.event_queue import Firmware, Outgoing
from firmware_sim.firmware.updater import Updater


@dataclass(slots=True)
class SimulatedDevice:
    """A device as a fleet runs it. With an `updater`, its firmware can be exchanged."""

    firmware: Firmware
    radio: RadioChannel
    updater: Updater | None = None
    _booted: int | None = None

    @classmethod
    def plain(
        cls, name: str, *, seed: int = 1, boot: int = 1, memory_events_max: int | None = None
    ) -> "SimulatedDevice":
        """A device without faults."""
        firmware = Firmware(name=name, rng=rng_of(seed, name, "firmware"), boot=boot)
        if memory_events_max is not None:
            firmware.memory_events_max = memory_events_max
        return cls(firmware, radio_of(seed, name))

    @property
    def name(self) -> str:
        return self.firmware.name

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to say, and nothing under way."""
        return self.firmware.is_idle and self.radio.is_empty

    def poll(self, now_ms: int, link_ms: int) -> list[Outgoing]:
        """What reaches the broker now."""
        self.radio.push(self.firmware.poll(now_ms, link_ms))
        self.started(link_ms)
        return self.radio.due(now_ms)

    def started(self, link_ms: int) -> None:
        """Start its firmware, if the device has been switched on since it was last asked."""
        if self._booted != self.firmware.boot:
            self._booted = self.firmware.boot
            self.restart(link_ms)

    def restart(self, link_ms: int) -> None:
        """Let the boot loader decide what runs from now on."""
        if self.updater is not None:
            self.updater.power_on(link_ms)

    def next_ms(self, now_ms: int) -> int | None:
        """The next time of the simulated world at which something changes."""
        times = (self.firmware.next_ms(now_ms), self.radio.next_ms(), self.radio.quiet_until_ms(now_ms))
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def is_cut_off(self, now_ms: int) -> bool:
        """Whether its scenario, rather than a fault of the system, keeps its events from arriving."""
        return self.firmware.back_ms(now_ms) is not None or self.radio.quiet_until_ms(now_ms) is not None


def rng_of(seed: int, device: str, purpose: str) -> random.Random:
    """The randomness of one purpose of one device: adding a device or a fault does not change the others."""
    return random.Random(f"{seed}/{device}/{purpose}")  # noqa: S311 - a simulation is seeded, not secret


def radio_of(seed: int, name: str, stages: Sequence[Stage] = ()) -> RadioChannel:
    """The air around a device."""
    return RadioChannel(stages, rng_of(seed, name, "air"))

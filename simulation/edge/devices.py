"""Devices: the production firmware core, with people who scan in bursts; and technicians, who have no device.

A device keeps an event until its receipt, and speaks to whatever machine is its gateway now. People carry it out of
range for hours and go on scanning; its wall clock may show anything, and old firmware does not say how old an event is.
"""

import math
import random
from functools import partial
from typing import Final, Protocol

from edge_agent.ledger.drafts import Draft
from firmware_sim.errors import MemoryFull
from firmware_sim.firmware.event_queue import Firmware, SkewedClock
from firmware_sim.firmware.happening import Happening, Sample, Scan
from simulation.disk import Happened, as_draft
from simulation.fault_rates import CALM
from simulation.network import Network
from simulation.steps import HOUR_MS
from simulation.world import World
from wire_protocol import topics
from wire_protocol.messages import DeviceReceipt, InvalidMessage

SKUS: Final = ("tea", "rice", "soap", "salt", "oil")
SHELVES: Final = ("A", "B", "C")
LOTS: Final = (None, None, None, "L1", "L2")
RESEND_MS_MAX: Final = 300_000
READING_SHARE: Final = 0.08
AWAY_SHARE: Final = 0.06  # of the scans, after which a device is out of range
AWAY_MS: Final = (60_000, 8 * HOUR_MS)
AGELESS_SHARE: Final = 0.25
CLOCKS_OFF_MS: Final = (0, 0, -3 * HOUR_MS, 2 * HOUR_MS, 700 * 24 * HOUR_MS, -50 * 365 * 24 * HOUR_MS)


class Hub(Protocol):
    """The gateway as its devices see it."""

    gateway: str

    def message(self, topic: str, payload: bytes) -> None:
        """A device's message arrives at the gateway's own broker."""


class SimulatedHandheld:
    """One handheld; `hub` is the machine it speaks to."""

    def __init__(self, world: World, network: Network, hub: Hub, name: str) -> None:
        self.name, self.hub, self._world, self._network = name, hub, world, network
        self._rng = world.rng(f"{name}.scans")
        clock = world.rng(f"{name}.clock")
        self.firmware = Firmware(
            name=name,
            rng=world.rng(f"{name}.firmware"),
            resend_ms_max=RESEND_MS_MAX,
            clock=SkewedClock(offset_ms=clock.choice(CLOCKS_OFF_MS)),
            knows_age=clock.random() >= AGELESS_SHARE,
        )
        self._wake_at_ms: int | None = None
        self._away = False
        self.turned_away = 0

    def scan(self) -> None:
        """Somebody scans something, or the sensor measures."""
        what = self._sample() if self._rng.random() < READING_SHARE else scan(self._rng)
        try:
            event = self.firmware.scan(Happening(self._world.now_ms, what))
        except MemoryFull:
            self.turned_away += 1  # the person with the scanner is told, so nothing has happened
            return
        if event is not None and isinstance(what, Scan):
            happened = Happened(self.hub.gateway, self.name, event)
            self._world.checks.scanned(happened, what, self._world.now_ms, knows_age=self.firmware.knows_age)
        self._perhaps_leave()
        self._publish()

    def _perhaps_leave(self) -> None:
        """Somebody carries it out of range, at times for hours."""
        if self._away or self._world.fault_rates is CALM or not self._world.happens(f"{self.name}.away", AWAY_SHARE):
            return
        self._away = True
        low, high = AWAY_MS
        away_ms = math.exp(self._world.rng(f"{self.name}.away").uniform(math.log(low), math.log(high)))
        self._world.trace(self.name, f"is out of range for {away_ms / 60_000:.0f} min")
        self._world.schedule.after(away_ms, self.come_back)

    def come_back(self) -> None:
        """It is in range again, and sends what it has."""
        if self._away:
            self._away = False
            self._world.trace(self.name, f"is in range again, with {self.firmware.waiting} events")
            self.firmware.reconnected()
            self._publish()

    def receive(self, payload: bytes) -> None:
        """A receipt arrives, if there is somebody to receive it."""
        if self._away:
            return
        try:
            self.firmware.receive(DeviceReceipt.decode(payload))
        except InvalidMessage:
            return

    def _publish(self) -> None:
        if self._away:
            return
        now_ms = self._world.now_ms
        for outgoing in self.firmware.poll(now_ms, now_ms):
            arrive = partial(self._arrive, self.hub, topics.device(self.name, outgoing.channel), now_ms)
            self._network.send(f"{self.name}.up", outgoing.payload, arrive)
        self._set_alarm()

    def _arrive(self, hub: Hub, topic: str, sent_ms: int, payload: bytes) -> None:
        """A message is at the gateway; nobody knows how long it was on its way."""
        self._world.checks.travelled(self.name, self._world.now_ms - sent_ms)
        hub.message(topic, payload)

    def _set_alarm(self) -> None:
        due_ms = self.firmware.next_link_ms()
        if due_ms is None or (self._wake_at_ms is not None and self._world.now_ms < self._wake_at_ms <= due_ms):
            return
        self._wake_at_ms = due_ms
        self._world.schedule.after(due_ms - self._world.now_ms, self._publish)

    def _sample(self) -> Sample:
        return Sample({"temperature_c": self._rng.randint(-50, 400) / 10})


def scan(rng: random.Random) -> Scan:
    """Something that happens to goods."""
    sku, lot, quantity = rng.choice(SKUS), rng.choice(LOTS), rng.randint(1, 20)
    first, second = rng.sample(SHELVES, 2)
    match rng.choices(("receive", "pick", "move", "scrap", "count"), (30, 35, 15, 5, 15))[0]:
        case "receive":
            return Scan(kind="receive", sku=sku, lot=lot, quantity=quantity, destination=first)
        case "pick":
            return Scan(kind="pick", sku=sku, lot=lot, quantity=quantity, source=first)
        case "move":
            return Scan(kind="move", sku=sku, lot=lot, quantity=quantity, source=first, destination=second)
        case "scrap":
            return Scan(kind="scrap", sku=sku, lot=lot, quantity=quantity, source=first)
        case _:
            return Scan(kind="count", sku=sku, lot=lot, quantity=quantity, location=first)


def technician(world: World, gateway: str) -> Draft:
    """What a technician books; the number of the slip of paper is the only thing that is unique about it."""
    rng = world.rng(f"{gateway}.technician")
    return as_draft(scan(rng), reference=f"slip-{rng.getrandbits(40):010x}", actor="technician")

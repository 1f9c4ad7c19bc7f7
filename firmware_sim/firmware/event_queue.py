"""What every device has inside: a memory of events without a receipt, and the rules for sending them again. Sans-I/O.

Two clocks come in as arguments. `now_ms` is the simulated world's: what happens, reboots, time offline. `link_ms` is a
monotonic clock that runs at the real pace whatever the simulation's speed: a receipt takes as long as it takes.

Invariants: an event id is never given twice; an event stays in memory until its receipt, through every reboot; memory
is bounded. When it is full the device takes nothing more (`MemoryFull`) and counts how often it had to say so; only a
sensor's reading is dropped then, and counted.
"""

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from firmware_sim.errors import MemoryFull
from firmware_sim.firmware.counters import Counters
from firmware_sim.firmware.happening import Happening, Sample, What
from firmware_sim.firmware.windows import Window, Windows
from wire_protocol.messages import DeviceEvent, DeviceReading, DeviceReceipt
from wire_protocol.topics import Channel
from wire_protocol.twin import DeviceConfig

MEMORY_EVENTS_MAX: Final = 500
REPEATS_MAX: Final = 5_000
RESEND_MS: Final = 5_000
RESEND_MS_MAX: Final = 60_000
TIME_MS_MAX: Final = (1 << 47) - 1


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One publication, due at a time of the simulated world."""

    at_ms: int
    channel: Channel
    payload: bytes


@dataclass(frozen=True, slots=True)
class SkewedClock:
    """What a device takes for the time: an offset, and a drift in parts per million since `since_ms`."""

    offset_ms: int = 0
    drift_ppm: float = 0.0
    since_ms: int = 0

    def passed_ms(self, from_ms: int, to_ms: int) -> int:
        """How long that is by a counter that runs as wrong as the clock, and that nobody sets."""
        return max(0, round((to_ms - from_ms) * (1 + self.drift_ppm / 1_000_000)))

    def reads(self, at_ms: int) -> int:
        """What the clock shows when it is `at_ms`."""
        drift_ms = round((at_ms - self.since_ms) * self.drift_ppm / 1_000_000)
        return min(max(at_ms + self.offset_ms + drift_ms, 0), TIME_MS_MAX)


@dataclass(slots=True)
class _Kept:
    at_ms: int
    channel: Channel
    message: DeviceEvent | DeviceReading
    attempts: int = 0


@dataclass(slots=True, kw_only=True)
class Firmware:
    """One device's memory and resending.

    Args:
        name: the device's name.
        rng: its own randomness, for the jitter of resends.
        boot: how often it has booted before; part of every event id.
        memory_events_max: how many events it keeps.
        offline: when it has no link and knows it: it keeps its events and sends them in a burst afterwards.
        reboots: when it restarts, and how long it is away: (at_ms, down_ms).
        clock: what it takes for the time.
        knows_age: says at each sending how long ago its events happened; firmware of before that does not.
        speed: how fast the simulated world passes; a gateway lives in real time, and so must the age be. None: no
            time passes at all.
        sampling_s_min: the shortest time between two samples that the sensor can do, seconds.
        resend_ms, resend_ms_max: the first wait for a receipt, doubled up to the second; milliseconds of the link.
    """

    name: str
    rng: random.Random
    boot: int = 1
    memory_events_max: int = MEMORY_EVENTS_MAX
    offline: Sequence[Window] = ()
    reboots: Sequence[tuple[int, int]] = ()
    clock: SkewedClock = SkewedClock()
    knows_age: bool = True
    speed: float | None = 1.0
    sampling_s_min: int = 1
    resend_ms: int = RESEND_MS
    resend_ms_max: int = RESEND_MS_MAX
    counters: Counters = field(default_factory=Counters)
    refusal: str | None = None
    config: DeviceConfig | None = None
    config_problem: str | None = None
    blinks_until_ms: int = 0
    _sampled_ms: int | None = None
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _unsent: deque[str] = field(default_factory=deque)
    _timers: list[tuple[int, str]] = field(default_factory=list)
    _repeats: list[tuple[int, int, _Kept]] = field(default_factory=list)
    _next: int = 1
    _away: Windows = field(default_factory=Windows)
    _reboots: deque[tuple[int, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        down = [Window(at_ms, at_ms + down_ms) for at_ms, down_ms in self.reboots]
        self._away = Windows([*self.offline, *down])
        self._reboots = deque(sorted(self.reboots))

    @property
    def waiting(self) -> int:
        """How many events and readings are in memory, without a receipt."""
        return len(self._kept)

    @property
    def is_full(self) -> bool:
        return len(self._kept) >= self.memory_events_max

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to say."""
        return not self._kept and not self._repeats

    def missing(self) -> tuple[str, ...]:
        """The ids of the events without a receipt."""
        return tuple(self._kept)

    def scan(self, happening: Happening) -> str | None:
        """Take something into memory; returns its event id, None for a reading that was dropped.

        Raises:
            MemoryFull: there is no room; offer it again after a receipt.
        """
        self._pass_time(happening.at_ms)
        sample = isinstance(happening.what, Sample)
        if sample and not self._is_due(happening.at_ms):
            self.counters.readings_skipped += 1
            return None
        if self.is_full:
            if not sample:
                self.counters.memory_full += 1
                raise MemoryFull
            self.counters.readings_dropped += 1
            return None
        event_id = f"{self.boot:x}-{self._next}"
        self._next += 1
        message = self._calibrated(happening.what).message(event_id, self.clock.reads(happening.at_ms))
        self._keep(event_id, happening, message)
        if sample:
            self.counters.readings += 1
        else:
            self.counters.events += 1
        return event_id

    def _keep(self, event_id: str, happening: Happening, message: DeviceEvent | DeviceReading) -> None:
        kept = self._kept[event_id] = _Kept(happening.at_ms, happening.what.channel, message)
        self._unsent.append(event_id)
        for at_ms in happening.repeats_ms[: REPEATS_MAX - len(self._repeats)]:
            heapq.heappush(self._repeats, (at_ms, self._next, kept))

    def poll(self, now_ms: int, link_ms: int) -> list[Outgoing]:
        """What to publish now."""
        self._pass_time(now_ms)
        if self.back_ms(now_ms) is not None:
            return []
        due = []
        while self._timers and self._timers[0][0] <= link_ms:
            self._unsent.append(heapq.heappop(self._timers)[1])
        while self._unsent:
            due += self._send(self._unsent.popleft(), now_ms, link_ms)
        while self._repeats and self._repeats[0][0] <= now_ms:
            at_ms, _, kept = heapq.heappop(self._repeats)
            due.append(Outgoing(at_ms, kept.channel, self._payload(kept, at_ms)))
            self.counters.repeated += 1
        return due

    def _send(self, event_id: str, now_ms: int, link_ms: int) -> list[Outgoing]:
        kept = self._kept.get(event_id)
        if kept is None:
            return []  # its receipt came before its turn
        wait_ms = min(self.resend_ms << min(kept.attempts, 16), self.resend_ms_max) * self.rng.uniform(1.0, 1.25)
        heapq.heappush(self._timers, (link_ms + int(wait_ms), event_id))
        if len(self._timers) > 4 * self.memory_events_max:
            # Timers of events that have their receipt are passed over when due; here they would pile up before that.
            self._timers = sorted(timer for timer in self._timers if timer[1] in self._kept)
        if kept.attempts:
            self.counters.resent += 1
        kept.attempts += 1
        self.counters.sent += 1
        at_ms = max(now_ms, kept.at_ms)
        return [Outgoing(at_ms, kept.channel, self._payload(kept, at_ms))]

    def _payload(self, kept: _Kept, now_ms: int) -> bytes:
        """The message with its age at this sending."""
        if not self.knows_age:
            return kept.message.encode()
        passed_ms = self.clock.passed_ms(kept.at_ms, now_ms)
        age_ms = 0 if self.speed is None else min(int(passed_ms / self.speed), TIME_MS_MAX)
        return kept.message.model_copy(update={"age_ms": age_ms}).encode()

    def reconnected(self) -> None:
        """Everything without a receipt is to be sent again: receipts sent meanwhile are lost."""
        self._timers.clear()
        self._unsent = deque(self._kept)

    def receive(self, receipt: DeviceReceipt) -> None:
        """Forget what the ledger has, or has refused for good."""
        for event_id in receipt.committed:
            if self._kept.pop(event_id, None) is not None:
                self.counters.receipts += 1
        for refusal in receipt.refused:
            if self._kept.pop(refusal.id, None) is not None:
                self.counters.refused += 1
                self.refusal = refusal.reason

    def configure(self, config: DeviceConfig) -> None:
        """Obey a configuration, if it is newer and within what the device can do; the old one stays otherwise.

        It is kept through reboots, like the memory.
        """
        if self.config is not None and config.version <= self.config.version:
            return
        if config.sampling_s is not None and config.sampling_s < self.sampling_s_min:
            self.config_problem = f"samples no faster than every {self.sampling_s_min} s"
            return
        self.config, self.config_problem = config, None

    def blink(self, seconds: int, link_ms: int) -> None:
        """Show where it is, until a time of the link's clock."""
        self.blinks_until_ms = link_ms + 1_000 * seconds

    @property
    def config_version(self) -> int:
        """The version that it works with, 0 before the first."""
        return 0 if self.config is None else self.config.version

    def _is_due(self, at_ms: int) -> bool:
        sampling_s = None if self.config is None else self.config.sampling_s
        if sampling_s is not None and self._sampled_ms is not None and at_ms < self._sampled_ms + 1_000 * sampling_s:
            return False
        self._sampled_ms = at_ms
        return True

    def _calibrated(self, what: What) -> What:
        if self.config is None or not isinstance(what, Sample):
            return what
        known = self.config.calibration
        true = {
            metric: value * known[metric].factor + known[metric].offset if metric in known else value
            for metric, value in what.values.items()
        }
        return Sample(true)

    def back_ms(self, now_ms: int) -> int | None:
        """When the device will be back, if it is offline or rebooting now."""
        return self._away.end_ms(now_ms)

    def next_ms(self, now_ms: int) -> int | None:
        """The next time of the simulated world at which there is something to do."""
        back_ms = self.back_ms(now_ms)
        if back_ms is not None:
            return back_ms
        times = [self._away.next_start_ms(now_ms), self._repeats[0][0] if self._repeats else None]
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def next_link_ms(self) -> int | None:
        """The next time of the link's clock at which something is to be sent again."""
        return self._timers[0][0] if self._timers else None

    def _pass_time(self, now_ms: int) -> None:
        while self._reboots and self._reboots[0][0] <= now_ms:
            self._reboots.popleft()
            self.boot += 1
            self._next = 1
            self.counters.reboots += 1
            self._repeats.clear()
            self.reconnected()  # the memory outlives it, what was under way does not

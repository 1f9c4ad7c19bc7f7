"""A fleet: devices at one or several gateways, living through what happens until all of it has its receipt.

    fleet = Fleet(brokers, streams, speed=600)
    report = await fleet.run()

`snapshot()`, `digest()` and `events()` may be called at any time, from the same event loop.

Invariant: `run` ends. Either every event has its receipt, or for `stall_s_max` real seconds no receipt came although
some were due; then the report says what is missing.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from firmware_sim.errors import BadInput, JournalFull, SimError, first_of
from firmware_sim.firmware.counters import DeviceCount, Entry, EventDigest, FleetSnapshot
from firmware_sim.firmware.happening import Happening, Scan
from firmware_sim.fleet.device import SimulatedDevice, rng_of
from firmware_sim.fleet.link import Link, LinkOptions
from firmware_sim.fleet.pace import Pace
from wire_protocol.address import BrokerAddress

STALL_S_MAX: Final = 60.0
WATCH_S: Final = 0.25
JOURNAL_EVENTS_MAX: Final = 1_000_000
BURST_EVENTS_MAX: Final = 32  # how much may happen before the links get their turn
MISSING_IDS_MAX: Final = 5

Timeline: TypeAlias = Iterable[tuple[str, Happening]]


@dataclass(frozen=True, slots=True)
class Stream:
    """Devices of one gateway and what happens at them: pairs of device and happening, in order of time.

    A phase begins when everything of the phase before has its receipt. One stream waits for its slowest device; use
    several streams for one gateway when its devices are to be independent.
    """

    gateway: str
    units: Sequence[SimulatedDevice]
    phases: Sequence[Timeline]


@dataclass(frozen=True, slots=True)
class Missing:
    """What one device has no receipt for: how many events, the first ids, and the last problem of its link."""

    gateway: str
    device: str
    events: int
    ids: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """How a run ended."""

    snapshot: FleetSnapshot
    missing: tuple[Missing, ...]
    seconds: float

    @property
    def is_complete(self) -> bool:
        """Whether everything that happened has its receipt. A refused event has one too."""
        return not self.missing


@dataclass(slots=True)
class _Gateway:
    digest: EventDigest = field(default_factory=EventDigest)
    journal: list[Entry] = field(default_factory=list)


class Fleet:
    """Runs streams against brokers.

    Args:
        brokers: each gateway's own broker.
        streams: the devices and what happens at them.
        speed: simulated seconds per second; None is as fast as the gateways take it.
        start_ms: the simulated time at which it begins.
        seed: of the links' jitter.
        options: how devices connect.
        stall_s_max: how long no receipt may come while some are due, real seconds.
        journal: keep every event for `events()`, at most `JOURNAL_EVENTS_MAX`.
        pace: the simulated clock, instead of `speed`.
    """

    def __init__(
        self,
        brokers: Mapping[str, BrokerAddress],
        streams: Sequence[Stream],
        *,
        speed: float | None,
        start_ms: int = 0,
        seed: int = 1,
        options: LinkOptions | None = None,
        stall_s_max: float = STALL_S_MAX,
        journal: bool = False,
        pace: Pace | None = None,
    ) -> None:
        self._pace, self._start_ms, self._stall_s_max = pace or Pace(speed), start_ms, stall_s_max
        self._streams, self._journal = tuple(streams), journal
        self._gateways = {stream.gateway: _Gateway() for stream in streams}
        self._links: dict[tuple[str, str], Link] = {}
        self._at_ms = start_ms
        for stream in streams:
            for unit in stream.units:
                self._add(stream.gateway, unit, brokers, options or LinkOptions(), seed)

    def _add(
        self, gateway: str, unit: SimulatedDevice, brokers: Mapping[str, BrokerAddress], options: LinkOptions, seed: int
    ) -> None:
        if gateway not in brokers:
            raise BadInput(f"There is no broker for gateway {gateway}.", hint=f"Give one: {gateway}=mqtt://HOST")
        if (gateway, unit.name) in self._links:
            raise BadInput(f"Device {unit.name} is there twice at gateway {gateway}.")
        rng = rng_of(seed, unit.name, f"{gateway}/link")
        self._links[gateway, unit.name] = Link(
            gateway, brokers[gateway], unit, pace=self._pace, options=options, rng=rng, start_ms=self._start_ms
        )

    async def run(self) -> Report:
        """Live through all streams; cancel it to stop earlier.

        Raises:
            JournalFull: more happened than a journal may keep.
            SimError: a recording or a playback cannot be read any further.
        """
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        self._pace.start(self._start_ms)
        try:
            async with asyncio.TaskGroup() as tasks:
                work = [
                    tasks.create_task(link.run(), name=f"sim[{gateway}].device[{device}]")
                    for (gateway, device), link in self._links.items()
                ]
                work += [
                    tasks.create_task(self._play(stream), name=f"sim[{stream.gateway}].stream[{number}]")
                    for number, stream in enumerate(self._streams)
                ]
                await self._watch(work)
                for task in work:
                    task.cancel()
        except* SimError as errors:
            raise first_of(errors) from None
        return Report(self.snapshot(), self._missing(), loop.time() - started_s)

    def snapshot(self) -> FleetSnapshot:
        """The counters of all devices now."""
        return FleetSnapshot(tuple(_count(link) for link in self._links.values()), self.digest(), self._at_ms)

    def digest(self, gateway: str | None = None) -> str:
        """The digest of all events that have happened, at one gateway or at all."""
        if gateway is not None:
            return self._gateways[gateway].digest.hexdigest()
        return EventDigest.union(state.digest for state in self._gateways.values()).hexdigest()

    def events(self, gateway: str) -> list[Entry]:
        """Every event that has happened at a gateway, once, in order; needs `journal=True`."""
        return list(self._gateways[gateway].journal)

    async def _play(self, stream: Stream) -> None:
        links = [self._links[stream.gateway, unit.name] for unit in stream.units]
        for phase in stream.phases:
            for number, (device, happening) in enumerate(phase, start=1):
                await self._pace.until(happening.at_ms)
                event_id = await self._links[stream.gateway, device].offer(happening)
                self._note(stream.gateway, device, event_id, happening)
                if number % BURST_EVENTS_MAX == 0:
                    await asyncio.sleep(0)
            for link in links:
                await link.settled()
        for link in links:
            link.end()

    def _note(self, gateway: str, device: str, event_id: str | None, happening: Happening) -> None:
        self._at_ms = max(self._at_ms, happening.at_ms)
        if event_id is None or not isinstance(happening.what, Scan):
            return
        state = self._gateways[gateway]
        state.digest.add(device, happening.what)
        if self._journal:
            if len(state.journal) >= JOURNAL_EVENTS_MAX:
                raise JournalFull
            state.journal.append(Entry(device, event_id, happening.what))

    async def _watch(self, work: Sequence[asyncio.Task[None]]) -> None:
        """Until all work is done, or no receipt has come for too long."""
        loop = asyncio.get_running_loop()
        receipts, changed_s = -1, loop.time()
        pending: set[asyncio.Task[None]] = set(work)
        while pending:
            _, pending = await asyncio.wait(pending, timeout=WATCH_S)
            total = sum(_receipts(link) for link in self._links.values())
            if total != receipts or not any(link.is_stuck for link in self._links.values()):
                receipts, changed_s = total, loop.time()
            elif loop.time() - changed_s > self._stall_s_max:
                return

    def _missing(self) -> tuple[Missing, ...]:
        return tuple(
            Missing(gateway, device, len(ids), ids[:MISSING_IDS_MAX], link.problem)
            for (gateway, device), link in self._links.items()
            if (ids := link.unit.firmware.missing())
        )


def _receipts(link: Link) -> int:
    counters = link.unit.firmware.counters
    return counters.receipts + counters.refused


def _count(link: Link) -> DeviceCount:
    firmware = link.unit.firmware
    counters = firmware.counters
    return DeviceCount(
        gateway=link.gateway,
        device=link.name,
        events=counters.events,
        readings=counters.readings,
        sent=counters.sent,
        resent=counters.resent,
        repeated=counters.repeated,
        receipts=counters.receipts,
        refused=counters.refused,
        readings_dropped=counters.readings_dropped,
        memory_full=counters.memory_full,
        reboots=counters.reboots,
        waiting=firmware.waiting,
        online=link.online,
        problem=link.problem,
        refusal=firmware.refusal,
    )

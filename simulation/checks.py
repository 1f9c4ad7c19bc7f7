"""What must always be true, looked at after every step that could break it; `reckoning` looks at everything at the end.

| name | what it says |
|---|---|
| I1 nothing lost | a receipted event is in the ledger; in the end, everything scanned and booked is in the cloud |
| I2 nothing twice | a happening is in a log once and counts in the cloud once; what the cloud has, a ledger wrote |
| I3 stock is a function | the balances of cloud and gateways are the oracle's over all logs of the site |
| I4 double entry | each SKU and lot sums to zero over all locations of a site |
| I6 bounds | no more frames in flight than the window admits |
| ack after commit | no acknowledgement says more than a commit has ever said |
| no false fork | only who lost its past, or shares it, is told to stop, and goes on in a new epoch |
| true time | an entry of a boot to which the cloud has told the time has its true time in the cloud |
| later than heard | what is booked is later, by the clock of the ledger, than what was known there before |
| late is late | an event goes between what was recorded before and after it happened, and has its true time |
| chain whole | `edge ledger verify` finds nothing |
| settles | when all faults have ended, edge and cloud become equal by themselves |

What nobody can keep is excused, by name: a happening that was on a destroyed disk alone.
"""

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.plan import Plan, PlannedFrame
from edge_agent.ledger.drafts import Draft
from edge_agent.ledger.ledger import Ledger
from firmware_sim.firmware.happening import Scan
from simulation.disk import Disk, Happened, as_draft, happened
from simulation.store import Shelf, Store
from wire_protocol import clock
from wire_protocol.clock import HLC_MAX
from wire_protocol.messages import Ack
from wire_protocol.names import ADJUST
from wire_protocol.reasons import ForkCode, RejectCode
from wire_protocol.replication import Sender
from wire_protocol.stock import imbalance, oracle
from wire_protocol.times import AHEAD_MS_MAX

HISTORY_CHECKED_MAX: Final = 60  # longer histories are checked now and then, and at the end
SELDOM: Final = 32
TIME_MS: Final = 3_000  # a message's way, and what a gateway does not correct

_HEARD: Final = "SELECT coalesce(max(hlc), 0) FROM log WHERE log > 0 AND NOT staged"


class Violation(BaseException):
    """An invariant does not hold. No guard of production catches it."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant, self.detail = invariant, detail


class MachineView(Protocol):
    """A machine as the checks see it."""

    name: str
    gateway: str
    ledger: Ledger
    disk: Disk


@dataclass(slots=True)
class Known:
    """How much of a machine's own log was looked at; `heard` is the latest entry of another log it had at that time."""

    epoch: str
    seq: int = 0
    hlc: int = 0
    heard: int | None = None
    zero_ms: int | None = None
    on_time: defaultdict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    events: set[Happened] = field(default_factory=set)


class Checks:
    """The oracle's eye on one universe."""

    def __init__(self) -> None:
        self.machines: Mapping[str, MachineView] = {}
        self.said: dict[Happened, Draft] = {}
        self.receipts: set[Happened] = set()
        self.written: defaultdict[tuple[str, str, int], set[str]] = defaultdict(set)
        self.zeros: dict[str, int] = {}
        self.late_ms: dict[str, int] = {}
        self.disturbed: set[str] = set()
        self.excused: dict[Happened, str] = {}
        self.forks: defaultdict[str, set[str]] = defaultdict(set)
        self.commits = self.epochs = self.repeated = 0
        self.fell_back = False
        self.jumped: set[str] = set()  # machines whose wall clock was not always right
        self._known: dict[str, Known] = {}
        self._untimed: set[str] = set()
        self._scanned_ms: dict[Happened, int] = {}
        self._travel_ms: defaultdict[str, int] = defaultdict(int)

    # --- the edge -----------------------------------------------------------------------------------------------

    def scanned(self, happened: Happened, what: Scan, at_ms: int, *, knows_age: bool) -> None:
        """A device has taken something into its memory."""
        self.said[happened] = as_draft(what)
        if knows_age:
            self._scanned_ms[happened] = at_ms

    def travelled(self, device: str, travel_ms: int) -> None:
        """A device's message has arrived, so long after it was sent."""
        self._travel_ms[device] = max(travel_ms, self._travel_ms[device])

    def booked(self, gateway: str, made: Draft) -> None:
        """A technician has committed something."""
        self.said[Happened(gateway, "", str(made.reference))] = made

    def booted(self, boot: str, zero_ms: int) -> None:
        """A boot began."""
        self.zeros[boot] = zero_ms

    def taught(self, boot: str, late_ms: int) -> None:
        """The cloud's time was committed, which an acknowledgement brought so late."""
        if boot not in self._untimed:
            self.late_ms[boot] = max(late_ms, self.late_ms.get(boot, 0))

    def untimed(self, boot: str) -> None:
        """A frame was sealed although nobody has told the time in this boot, and it was waited for long enough."""
        self._untimed.add(boot)

    def forgot(self, machine: MachineView, boots: Iterable[str]) -> None:
        """A machine's disk is another than it was; the times of these boots are no longer known to it."""
        self._known.pop(machine.name, None)
        self.forks[machine.name].clear()  # of a later past
        self.untaught(boots)

    def untaught(self, boots: Iterable[str]) -> None:
        """A disk has entries of these boots, and not their times."""
        for boot in boots:
            self.late_ms.pop(boot, None)

    def receipted(self, machine: MachineView, device: str, event: str) -> None:
        """A device is told that it may forget an event."""
        what = Happened(machine.gateway, device, event)
        self.receipts.add(what)
        if what not in self._known[machine.name].events and what not in set(machine.disk.content()):
            raise Violation("I1 nothing lost", f"{machine.name} gives a receipt for {device} {event}, not in its logs")

    def committed(self, machine: MachineView) -> None:
        """A machine has committed: its new entries are new, and are what was scanned."""
        epoch = machine.ledger.epoch
        known = self._known.get(machine.name)
        if known is None or known.epoch != epoch:
            known = self._known[machine.name] = Known(epoch)
        rows = machine.disk.connection.execute("SELECT seq, body FROM entry WHERE seq > ? ORDER BY seq", (known.seq,))
        followed = clock.pack(machine.ledger.now_ms() + AHEAD_MS_MAX - TIME_MS)
        # In a commit that brings the true time as well, the entries were made by the clock before.
        same = known.zero_ms == machine.ledger.zero_ms
        known.zero_ms = machine.ledger.zero_ms
        heard = known.heard if same and known.heard is not None and known.heard <= followed else 0
        late = []
        for seq, body in rows.fetchall():
            if seq != known.seq + 1:
                raise Violation("chain whole", f"{machine.name} has entry {seq} after {known.seq}")
            entry = json.loads(body)
            what = happened(machine.gateway, entry)
            self._require_place_in_time(machine.name, what, entry)
            if "late_ms" in entry:
                late.append(entry)
            elif known.heard is not None and entry["hlc"] <= max(heard, known.hlc):
                raise Violation("later than heard", f"entry {seq} of {machine.name} is before one that was known there")
            if what in known.events:
                raise Violation("I2 nothing twice", f"{machine.name} has {' '.join(what)} again, as entry {seq}")
            _require_as_said(machine.name, self.said[what], entry)
            known.events.add(what)
            self.written[machine.gateway, epoch, seq].add(body)
            known.seq, known.hlc = seq, max(known.hlc, entry["hlc"])
            if "late_ms" not in entry:
                known.on_time[entry["boot"]].append((entry["mono_ms"], entry["hlc"]))
        for entry in late:
            _require_place_in_order(machine.name, entry, known.on_time[entry["boot"]])
        known.heard = machine.disk.connection.execute(_HEARD).fetchone()[0]

    def _require_place_in_time(self, machine: str, what: Happened, entry: dict[str, Any]) -> None:
        """An event whose age is known has its true time, but for the time that its message was on its way."""
        scanned_ms = self._scanned_ms.get(what)
        if scanned_ms is None:
            return
        off_ms = self.zeros[entry["boot"]] + entry["mono_ms"] - entry.get("late_ms", 0) - scanned_ms
        if not -TIME_MS < off_ms < self._travel_ms[what.who] + TIME_MS:
            raise Violation("late is late", f"{machine} has {' '.join(what)} {off_ms / 1000:+,.0f} s from its time")

    def forked(self, machine: MachineView, reason: str) -> None:
        """A machine has stopped a stream."""
        self.forks[machine.name].add(machine.ledger.epoch)
        # Frames are kept for hours of the wall clock: when that jumps, a database may fall back behind them.
        outlived = self.fell_back and machine.name in self.jumped and ForkCode.of(reason) is ForkCode.NOT_KEPT
        if not outlived:
            self._require_disturbed(machine.gateway, reason)

    @staticmethod
    def shown_another(machine: MachineView, ack: Ack, *, stopped: bool) -> None:
        """A machine has been shown the digest of a frame that it has otherwise."""
        if not stopped:
            raise Violation("fork noticed", f"{machine.name} goes on, told of another {ack.stream} frame {ack.frame}")

    @staticmethod
    def accused(machine: MachineView, reason: str) -> None:
        """A machine was stopped for a fork, and the cloud has just its history."""
        raise Violation("no false fork", f"{machine.name} has the cloud's history and is stopped: {reason}")

    def opened(self, machine: MachineView) -> None:
        """A machine goes on in a new epoch."""
        self.epochs += 1
        self.disturbed.add(machine.gateway)

    def _require_disturbed(self, gateway: str, reason: str) -> None:
        if gateway not in self.disturbed:
            raise Violation("no false fork", f"{gateway}: {reason}")

    @staticmethod
    def in_flight(machine: str, sender: Sender) -> None:
        """A sender has sent."""
        if sender.in_flight > sender.limits.window_frames_max:
            raise Violation("I6 bounds", f"{machine} has {sender.in_flight} frames of {sender.stream} in flight")

    # --- the cloud ----------------------------------------------------------------------------------------------

    def merged(self, store: Store, planned: Plan) -> None:
        """The cloud has committed."""
        self.commits += 1
        twice, store.twice = store.twice, []
        for what, first, second in twice:
            raise Violation("I2 nothing twice", f"{' '.join(what)} counts as {_place(first)} and as {_place(second)}")
        for frame in planned.merged:
            self._require_frame(store, frame)
        shelves = sorted(store.touched)
        for site in {image_store.site for image_store in shelves}:
            _require_zero(store, site, {(image_store.cell.sku, image_store.cell.lot) for image_store in shelves})
        for image_store in shelves:
            if len(store.history[image_store]) <= HISTORY_CHECKED_MAX or self.commits % SELDOM == 0:
                _require_oracle(store, image_store)

    def _require_frame(self, store: Store, frame: PlannedFrame) -> None:
        log = frame.arrived.log
        where = f"{log.gateway} {log.epoch[-4:]}"
        if log.stream == "readings":
            readings = store.readings[log]
            if readings != list(range(1, len(readings) + 1)):
                raise Violation("I2 nothing twice", f"the readings of {where} are not in order")
            return
        for bad in frame.rejected:
            self.repeated += 1
            what = happened(log.gateway, dict(bad.row) if isinstance(bad.row, dict) else {})
            if bad.code is not RejectCode.REPEATED or what not in store.places:
                raise Violation("I1 nothing lost", f"the cloud rejects entry {bad.seq} of {where}: {bad.reason}")
        for seq, entry in frame.entries:
            if entry.body() not in self.written.get((log.gateway, log.epoch, seq), ()):
                raise Violation("I2 nothing twice", f"no ledger has written entry {seq} of {where} as the cloud has it")
            late_ms = self.late_ms.get(entry.boot)
            off_ms = store.at_ms[log][seq] - (self.zeros[entry.boot] + entry.mono_ms - (entry.late_ms or 0))
            if late_ms is not None and abs(off_ms) > TIME_MS + late_ms:
                raise Violation("true time", f"entry {seq} of {where} is {off_ms / 1000:+,.0f} s off")
        seqs = {seq for seq, _ in store.entries[log]} | store.rejected[log]
        if seqs != set(range(1, store.cursors[log].seq + 1)):
            raise Violation("I2 nothing twice", f"the entries of {where} are not in order")

    def acknowledged(self, store: Store, key: LogKey, ack: Ack) -> None:
        """A worker is about to acknowledge."""
        if ack.frame > store.furthest.get(key, 0):
            raise Violation(
                "ack after commit",
                f"frame {ack.frame} of {key.gateway} {key.stream}; committed: {store.furthest.get(key, 0)}",
            )
        if ack.fork is not None:
            self._require_disturbed(key.gateway, ack.fork)

    # --- what nobody can keep -----------------------------------------------------------------------------------

    def destroyed(self, store: Store, lost: Iterable[Happened], why: str) -> int:
        """Happenings are gone from a disk forever: those that are nowhere else are excused; returns how many."""
        elsewhere: set[Happened] = set()
        for machine in self.machines.values():
            elsewhere.update(machine.disk.content())
        gone = [
            what
            for what in lost
            if what not in store.places and what not in elsewhere and (what in self.receipts or not what.who)
        ]
        self.excused |= dict.fromkeys(gone, why)
        return len(gone)


def _place(place: tuple[LogKey, int]) -> str:
    log, seq = place
    return f"entry {seq} of {log.epoch[-4:]}"


def _require_place_in_order(machine: str, entry: dict[str, Any], on_time: list[tuple[int, int]]) -> None:
    """What came late is later than all that was recorded in its boot by then, and earlier than all since."""
    happened_ms = entry["mono_ms"] - entry["late_ms"]
    number = bisect_right(on_time, (happened_ms, HLC_MAX))
    before, after = on_time[max(0, number - 1) : number], on_time[number : number + 1]
    if any(hlc > entry["hlc"] for _, hlc in before) or any(hlc <= entry["hlc"] for _, hlc in after):
        raise Violation("late is late", f"{machine} has {entry['event']} of {entry['device']} in the wrong place")


def _require_as_said(machine: str, made: Draft, entry: dict[str, object]) -> None:
    for name in ("kind", "sku", "quantity", "source", "destination", "location", "lot"):
        if getattr(made, name) != entry.get(name):
            raise Violation("I1 nothing lost", f"{machine} booked {name} {entry.get(name)}, not {getattr(made, name)}")


def _require_zero(store: Store, site: int, goods: set[tuple[str, str]]) -> None:
    on_hand = (
        (image_store.cell, balance.on_hand)
        for image_store, balance in store.balances.items()
        if image_store.site == site and (image_store.cell.sku, image_store.cell.lot) in goods
    )
    if off := imbalance(on_hand):
        raise Violation("I4 double entry", f"site {site} is off by {off}")


def _require_oracle(store: Store, image_store: Shelf) -> None:
    if image_store.cell.location == ADJUST:
        return  # follows from the shelves by double entry, which is checked apart
    defined = oracle(store.history[image_store]).on_hand.get(image_store.cell, 0)
    stored = store.balances[image_store].on_hand
    if stored != defined:
        raise Violation(
            "I3 stock is a function", f"site {image_store.site} {image_store.cell}: {stored}, oracle {defined}"
        )

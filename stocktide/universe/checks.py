"""What must always be true, looked at after every step that could break it, and everything once more at the end.

| name | what it says |
|---|---|
| I1 nothing lost | a receipted event is in the ledger; in the end, everything scanned is |
| I2 nothing twice | an event is in the ledger once; the cloud's entries of a gateway are a prefix of its ledger |
| I3 stock is a function | the cloud's balances are the oracle's over its entries |
| I4 double entry | each SKU and lot sums to zero over all locations of a site |
| I6 bounds | no more frames in flight than the window admits |
| ack after commit | no acknowledgement says more than a commit has ever said |
| no false fork | no gateway is told to stop: here nobody restores backups or clones disks |
| chain whole | `edge ledger verify` finds nothing |
| settles | when all faults have ended, edge and cloud become equal by themselves |
"""

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from cloud_store.arrivals import LogKey
from cloud_store.plan import Plan
from edge_agent import audit, queries
from edge_agent.drafts import draft
from firmware_sim.happening import Scan
from stocktide.universe.store import Shelf, Store
from wire_protocol.entries import ENTRY, Count, LedgerEntry, Movement
from wire_protocol.messages import Ack
from wire_protocol.names import ADJUST
from wire_protocol.replication import Sender
from wire_protocol.stock import Cell, EntryKey, differences, imbalance, oracle

if TYPE_CHECKING:
    from stocktide.universe.gateway import Gateway

HISTORY_CHECKED_MAX: Final = 150  # longer histories are checked now and then, and at the end
SELDOM: Final = 32


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant, self.detail = invariant, detail


class Checks:
    """The oracle's eye on one universe."""

    def __init__(self) -> None:
        self.gateways: dict[str, Gateway] = {}
        self.said: dict[str, dict[tuple[str, str], Scan]] = defaultdict(dict)
        self.receipts: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self.commits = 0
        self._counted: dict[str, int] = defaultdict(int)
        self._events: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self._prefix: dict[str, int] = {}

    # --- while it runs ------------------------------------------------------------------------------------------

    def scanned(self, gateway: str, device: str, event: str, what: Scan) -> None:
        """A device has taken something into its memory."""
        self.said[gateway][device, event] = what

    def receipted(self, gateway: str, device: str, event: str) -> None:
        """A device is told that it may forget an event."""
        self.receipts[gateway].add((device, event))
        if (device, event) not in self._events[gateway]:
            raise Violation("I1 nothing lost", f"{gateway} gives a receipt for {device} {event}, not in its ledger")

    def committed(self, gateway: "Gateway") -> None:
        """A gateway has committed: its new events are new, and are what was scanned."""
        rows = gateway.disk.connection.execute(
            "SELECT seq, body FROM entry WHERE seq > ? ORDER BY seq", (self._counted[gateway.name],)
        ).fetchall()
        events = self._events[gateway.name]
        for seq, body in rows:
            if seq != self._counted[gateway.name] + 1:
                raise Violation("chain whole", f"{gateway.name} has entry {seq} after {self._counted[gateway.name]}")
            entry = json.loads(body)
            event = entry["device"], entry["event"]
            if event in events:
                raise Violation("I2 nothing twice", f"{gateway.name} has {' '.join(event)} again, as entry {seq}")
            events.add(event)
            _require_as_said(gateway.name, self.said[gateway.name][event], entry)
            self._counted[gateway.name] = seq

    def merged(self, store: Store, planned: Plan) -> None:
        """The cloud has committed."""
        self.commits += 1
        if planned.report.rejected:
            raise Violation("I1 nothing lost", "the cloud rejects an entry that a gateway took")
        for name in sorted({frame.arrived.gateway for frame in planned.merged}):
            self._require_prefix(store, name)
            readings = store.readings[name]
            if readings != list(range(1, len(readings) + 1)):
                raise Violation("I2 nothing twice", f"the readings of {name} are not in order")
        shelves = sorted(store.touched)
        for site in {shelf.site for shelf in shelves}:
            self._require_zero(store, site, {(shelf.cell.sku, shelf.cell.lot) for shelf in shelves})
        for shelf in shelves:
            if len(store.history[shelf]) <= HISTORY_CHECKED_MAX or self.commits % SELDOM == 0:
                _require_oracle(store, shelf)

    def acknowledged(self, store: Store, key: LogKey, ack: Ack) -> None:
        """A worker is about to acknowledge."""
        if ack.frame > store.furthest.get(key, 0):
            raise Violation(
                "ack after commit",
                f"frame {ack.frame} of {key.gateway} {key.stream}; committed: {store.furthest.get(key, 0)}",
            )
        if ack.fork is not None:
            self.forked(key.gateway, ack.fork)

    def forked(self, gateway: str, reason: str) -> None:
        """A stream was stopped."""
        raise Violation("no false fork", f"{gateway}: {reason}")

    @staticmethod
    def in_flight(gateway: str, sender: Sender) -> None:
        """A sender has sent."""
        if sender.in_flight > sender.limits.window_frames_max:
            raise Violation("I6 bounds", f"{gateway} has {sender.in_flight} frames of {sender.stream} in flight")

    def stepped_back(self) -> None:
        """The cloud has lost its last commits; its prefixes are checked from the start again."""
        self._prefix.clear()

    def _require_prefix(self, store: Store, name: str) -> None:
        """Everything the cloud has of a gateway is its ledger's beginning; what was checked once stays checked."""
        entries, begin = store.entries[name], self._prefix.get(name, 0)
        rows = (
            self.gateways[name]
            .disk.connection.execute(
                "SELECT seq, body FROM entry WHERE seq > ? AND seq <= ? ORDER BY seq", (begin, len(entries))
            )
            .fetchall()
        )
        ours = [(seq, entry.body()) for seq, entry in entries[begin:]]
        if ours != rows:
            wrong = next((pair for pair in zip(ours, rows, strict=False) if pair[0] != pair[1]), None)
            what = f"entry {wrong[0][0]} is the ledger's {wrong[1][0]}" if wrong else f"{len(entries)} entries"
            raise Violation("I2 nothing twice", f"the cloud's entries of {name} are no prefix of its ledger: {what}")
        self._prefix[name] = len(entries)

    @staticmethod
    def _require_zero(store: Store, site: int, goods: set[tuple[str, str]]) -> None:
        on_hand = (
            (shelf.cell, balance.on_hand)
            for shelf, balance in store.balances.items()
            if shelf.site == site and (shelf.cell.sku, shelf.cell.lot) in goods
        )
        if off := imbalance(on_hand):
            raise Violation("I4 double entry", f"site {site} is off by {off}")

    # --- at the end ---------------------------------------------------------------------------------------------

    def unsettled(self, store: Store) -> str | None:
        """What is not yet as it must be in the end; None when edge and cloud agree."""
        for name, gateway in self.gateways.items():
            if waiting := sum(device.firmware.waiting for device in gateway.devices.values()):
                return f"{name} has {waiting} events without a receipt"
            if len(store.entries[name]) != self._counted[name]:
                return f"the cloud has {len(store.entries[name])} of {self._counted[name]} entries of {name}"
        return None

    def finish(self, store: Store) -> None:
        """Everything, once more and in full."""
        self._prefix.clear()
        for name, gateway in self.gateways.items():
            self._finish_ledger(name, gateway)
            self._require_prefix(store, name)
        sites: defaultdict[int, list[tuple[EntryKey, LedgerEntry]]] = defaultdict(list)
        for name, gateway in self.gateways.items():
            sites[gateway.site] += [
                (EntryKey(e.hlc, name, gateway.ledger.epoch, seq), e) for seq, e in store.entries[name]
            ]
        for site, entries in sites.items():
            ours = {shelf.cell: balance.on_hand for shelf, balance in store.balances.items() if shelf.site == site}
            for cell, stored, defined in differences(ours.items(), oracle(entries).on_hand.items()):
                raise Violation("I3 stock is a function", f"site {site} {cell}: stored {stored}, oracle {defined}")

    def _finish_ledger(self, name: str, gateway: "Gateway") -> None:
        connection = gateway.disk.connection
        if findings := audit.verify(connection).findings:
            raise Violation("chain whole", f"{name}: {findings[0]}")
        events = Counter(
            (entry["device"], entry["event"]) for entry in queries.export(connection) if entry.get("device")
        )
        if lost := self.said[name].keys() - events.keys():
            raise Violation("I1 nothing lost", f"{name} has {len(lost)} scans less than were made")
        if twice := [event for event, times in events.items() if times > 1]:
            raise Violation("I2 nothing twice", f"{name} has {len(twice)} events more than once")
        entries = [
            (EntryKey(entry.hlc, name, gateway.ledger.epoch, seq), entry)
            for seq, entry in self._ledger_entries(gateway)
        ]
        for cell, stored, defined in differences(queries.balances(connection).items(), oracle(entries).on_hand.items()):
            raise Violation("I3 stock is a function", f"{name} {cell}: stored {stored}, oracle {defined}")

    @staticmethod
    def _ledger_entries(gateway: "Gateway") -> list[tuple[int, LedgerEntry]]:
        found = gateway.disk.connection.execute("SELECT seq, body FROM entry ORDER BY seq")
        parsed = ((seq, ENTRY.validate_json(body)) for seq, body in found)
        return [(seq, entry) for seq, entry in parsed if isinstance(entry, Movement | Count)]


def _require_as_said(gateway: str, what: Scan, entry: dict[str, object]) -> None:
    made = draft(
        what.kind, what.sku, what.quantity,
        source=what.source, destination=what.destination, location=what.location, lot=what.lot,
    )  # fmt: skip
    for name in ("kind", "sku", "quantity", "source", "destination", "location", "lot"):
        if getattr(made, name) != entry.get(name):
            raise Violation("I1 nothing lost", f"{gateway} booked {name} {entry.get(name)}, not {getattr(made, name)}")


def _require_oracle(store: Store, shelf: Shelf) -> None:
    if shelf.cell.location == ADJUST:
        return  # follows from the shelves by double entry, which is checked apart
    defined = oracle(store.history[shelf]).on_hand.get(shelf.cell, 0)
    stored = store.balances[shelf].on_hand
    if stored != defined:
        where = Cell(*shelf.cell)
        raise Violation("I3 stock is a function", f"site {shelf.site} {where}: stored {stored}, oracle {defined}")

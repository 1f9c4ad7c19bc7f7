"""Ledger entries as rows: what is copied into `movement`, what is counted, and what moves in each cell.

Invariant: no database here, only arithmetic. Every movement changes two cells by the same quantity, so the sum over all
cells of a batch is zero before anything is written.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeAlias

from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.dictionary import Dictionary
from cloud_store.merge.plan import PlannedFrame
from wire_protocol import clock, names, times
from wire_protocol.entries import Count, Movement, Reading
from wire_protocol.messages import ClampedTime

CLAMPED_REPORTED_MAX: Final = 200
HOUR_OF_HLC: Final = clock.pack(3600 * 1000)  # of the hybrid logical clock, whose upper bits are milliseconds
NO_LOT: Final = 0
NEVER: Final = -1  # the hybrid logical clock of nothing; real ones are not negative

# On the wire a timestamptz is a number of microseconds since 2000-01-01 UTC; binary COPY takes it as it is.
POSTGRES_EPOCH_MS: Final = 946_684_800_000
MOVEMENT_KINDS: Final = {
    "receive": 1,
    "pick": 2,
    "move": 3,
    "ship": 4,
    "arrive": 5,
    "scrap": 6,
    "correct": 7,
}
MovementRow: TypeAlias = tuple[Any, ...]


class CellKey(NamedTuple):
    """A cell of the balance by its ids."""

    location_id: int
    item_id: int
    lot_id: int


class Step(NamedTuple):
    """One entry's effect on a cell, in the order of the site's entries."""

    hlc: int
    gateway: str
    epoch: str
    seq: int
    moved: int
    found: dict[str, Any] | None


@dataclass(slots=True)
class CellChange:
    """What a batch's movements do to a cell."""

    moved: int = 0
    last_hlc: int = NEVER
    first_hlc: int = 1 << 63


@dataclass(slots=True)
class LedgerRows:
    """Everything a batch writes about goods, in the words of `ids`."""

    ids: Dictionary
    movements: list[MovementRow] = field(default_factory=list)
    readings: list[tuple[Any, ...]] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)
    shelves: dict[CellKey, CellChange] = field(default_factory=dict)
    adjust: dict[CellKey, CellChange] = field(default_factory=dict)
    hours: dict[tuple[int, int, int, int], int] = field(default_factory=dict)
    gateway_names: dict[int, str] = field(default_factory=dict)
    epoch_names: dict[int, str] = field(default_factory=dict)
    bounded: dict[LogKey, list[ClampedTime]] = field(default_factory=dict)
    late_counts: dict[str, int] = field(default_factory=dict)

    def adjust_cell(self, cell: CellKey) -> CellKey:
        """The cell that what a count adds to this one is taken from."""
        return cell._replace(location_id=self.ids.adjust_of(cell.location_id))


def postgres_time(ms: int) -> int:
    """A Unix time in milliseconds as binary COPY wants it."""
    return (ms - POSTGRES_EPOCH_MS) * 1000


def build(merged: Iterable[PlannedFrame], ids: Dictionary) -> LedgerRows:
    """Make the rows of all frames of a batch."""
    rows = LedgerRows(ids)
    for planned in merged:
        _FrameRows(planned, ids, rows).build()
    return rows


class _FrameRows:
    """Adds the rows of one frame."""

    def __init__(self, planned: PlannedFrame, ids: Dictionary, rows: LedgerRows) -> None:
        header, gateway = planned.arrived.frame.header, planned.gateway
        self.entries, self.gateway, self.ids, self.rows = planned.entries, gateway, ids, rows
        self.boots, self.received_ms = header.boots, planned.arrived.received_ms
        # Nearly all times are: then nothing more is asked about them.
        self.believed_ms = self.received_ms - times.AGE_MS_MAX, self.received_ms + times.AHEAD_MS_MAX
        self.log, self.epoch, self.epoch_id = (
            planned.arrived.log,
            header.epoch,
            ids.epochs[gateway.gateway_id, header.epoch],
        )
        self.adjust_id = ids.locations[gateway.site_id, names.ADJUST]

    def build(self) -> None:
        self.rows.gateway_names[self.gateway.gateway_id] = self.gateway.name
        self.rows.epoch_names[self.epoch_id] = self.epoch
        for seq, entry in self.entries:
            if isinstance(entry, Movement):
                self._movement(seq, entry)
            elif isinstance(entry, Count):
                self._count(seq, entry)
            else:
                self._reading(seq, entry)

    def _movement(self, seq: int, entry: Movement) -> None:
        gateway, quantity = self.gateway, entry.quantity
        at_ms, claimed_ms = self._true_time(seq, entry)
        item_id, lot_id = self._goods(entry.sku, entry.lot)
        locations, site_id = self.ids.locations, gateway.site_id
        source_id, destination_id = locations[site_id, entry.source], locations[site_id, entry.destination]
        device_at = None if entry.device_at_ms is None else postgres_time(entry.device_at_ms)
        self.rows.movements.append(
            (
                postgres_time(at_ms),
                entry.hlc,
                seq,
                quantity,
                device_at,
                claimed_ms,
                gateway.tenant_id,
                gateway.gateway_id,
                self.epoch_id,
                item_id,
                lot_id,
                source_id,
                destination_id,
                self._device(entry.device),
                MOVEMENT_KINDS[entry.kind],
                entry.serial,
                entry.event,
                entry.actor,
                entry.reference,
            )
        )
        hour = entry.hlc // HOUR_OF_HLC
        self._move((source_id, item_id, lot_id), entry.hlc, -quantity)
        if not names.is_virtual(entry.source):
            self._hour((source_id, item_id, lot_id, hour), -quantity)
        self._move((destination_id, item_id, lot_id), entry.hlc, quantity)
        if not names.is_virtual(entry.destination):
            self._hour((destination_id, item_id, lot_id, hour), quantity)

    def _move(self, cell: tuple[int, int, int], hlc: int, moved: int) -> None:
        cells = self.rows.adjust if cell[0] == self.adjust_id else self.rows.shelves
        # A plain tuple finds its named equal; making named ones only for new cells is worth a tenth of all this.
        change = cells.get(cell)  # type: ignore[call-overload]
        if change is None:
            cells[CellKey(*cell)] = CellChange(moved, hlc, hlc)
            return
        change.moved += moved
        if change.last_hlc < hlc:
            change.last_hlc = hlc
        elif change.first_hlc > hlc:
            change.first_hlc = hlc

    def _hour(self, key: tuple[int, int, int, int], moved: int) -> None:
        """Add to what was moved in a cell in an hour."""
        self.rows.hours[key] = self.rows.hours.get(key, 0) + moved

    def _goods(self, sku: str, lot: str | None) -> tuple[int, int]:
        item_id = self.ids.items[self.gateway.tenant_id, sku]
        return item_id, NO_LOT if lot is None else self.ids.lots[item_id, lot]

    def _count(self, seq: int, entry: Count) -> None:
        gateway = self.gateway
        at_ms, claimed_ms = self._true_time(seq, entry)
        item_id, lot_id = self._goods(entry.sku, entry.lot)
        location_id = self.ids.locations[gateway.site_id, entry.location]
        self.rows.shelves.setdefault(CellKey(location_id, item_id, lot_id), CellChange())
        self.rows.counts.append(
            {
                "at": _datetime(at_ms),
                "hlc": entry.hlc,
                "seq": seq,
                "quantity": entry.quantity,
                "variance": None,
                "device_at": None if entry.device_at_ms is None else _datetime(entry.device_at_ms),
                "claimed_ms": claimed_ms,
                "tenant_id": gateway.tenant_id,
                "gateway_id": gateway.gateway_id,
                "epoch_id": self.epoch_id,
                "item_id": item_id,
                "lot_id": lot_id,
                "location_id": location_id,
                "device_id": self._device(entry.device),
                "gateway_name": gateway.name,
                "epoch": self.epoch,
                "serial": entry.serial,
                "event": entry.event,
                "actor": entry.actor,
                "reference": entry.reference,
            }
        )

    def _reading(self, seq: int, entry: Reading) -> None:
        gateway = self.gateway
        at_ms, claimed_ms = self._true_time(seq, entry)
        device_at = None if entry.device_at_ms is None else postgres_time(entry.device_at_ms)
        for name, value in entry.values.items():
            self.rows.readings.append(
                (
                    postgres_time(at_ms),
                    entry.hlc,
                    seq,
                    value,
                    device_at,
                    claimed_ms,
                    gateway.tenant_id,
                    gateway.gateway_id,
                    self.epoch_id,
                    self._device(entry.device),
                    self.ids.metrics[gateway.tenant_id, name],
                )
            )

    def _true_time(self, seq: int, entry: Movement | Count | Reading) -> tuple[int, int | None]:
        claimed = times.claimed_ms(entry, self.boots)
        if self.believed_ms[0] <= claimed <= self.believed_ms[1]:
            return claimed, None
        found = times.bounded(claimed, self.received_ms)
        reported = self.rows.bounded.setdefault(self.log, [])
        if len(reported) < CLAMPED_REPORTED_MAX:
            reported.append(ClampedTime(seq=seq, at_ms=found.at_ms))
        return found

    def _device(self, name: str | None) -> int | None:
        return None if name is None else self.ids.devices[self.gateway.gateway_id, name]


def _datetime(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)

"""What happens at a device: somebody scans, something is weighed, a tag passes. Pure values.

Invariant: a happening has no event id. Firmware gives it one when it takes it into its memory, and never another.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from wire_protocol import names
from wire_protocol.entries import EntryKind
from wire_protocol.messages import DeviceEvent, DeviceReading
from wire_protocol.topics import Channel

SHOP = "shop"  # where a recording's goods lie: recordings know of sites, not of shelves


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One movement or count, as a device understands it; locations that follow from the kind are left out."""

    kind: EntryKind
    sku: str
    quantity: int
    source: str | None = None
    destination: str | None = None
    location: str | None = None
    lot: str | None = None
    serial: str | None = None
    actor: str | None = None
    reference: str | None = None

    channel = Channel.DEVICE_EVENT

    def message(self, event_id: str, at_ms: int) -> DeviceEvent:
        """The message that tells of it."""
        return DeviceEvent(
            id=event_id,
            kind=self.kind,
            sku=self.sku,
            quantity=self.quantity,
            source=self.source,
            destination=self.destination,
            location=self.location,
            lot=self.lot,
            serial=self.serial,
            actor=self.actor,
            reference=self.reference,
            at_ms=at_ms,
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sensor measured; units are the end of each name."""

    values: dict[str, float]

    channel = Channel.DEVICE_READING

    def message(self, event_id: str, at_ms: int) -> DeviceReading:
        """The message that tells of it."""
        return DeviceReading(id=event_id, values=self.values, at_ms=at_ms)


What: TypeAlias = Scan | Sample


@dataclass(frozen=True, slots=True)
class Happening:
    """Something at a time (Unix milliseconds of the simulated world).

    `repeats_ms` are later times at which the device says the very same again: the further reads of an RFID tag in one
    passage, with one event id.
    """

    at_ms: int
    what: What
    repeats_ms: tuple[int, ...] = field(default=())


def sale(sku: str, quantity: int) -> Scan:
    """A recorded sale, or a return when the quantity is negative."""
    if quantity > 0:
        return Scan(kind="pick", sku=sku, quantity=quantity, source=SHOP, destination=names.CUSTOMER)
    return Scan(kind="receive", sku=sku, quantity=-quantity, source=names.CUSTOMER, destination=SHOP)

"""Drafts: what a device or a technician says happened, before the ledger gives it a time and a number.

Invariant: a draft that is made without an error becomes an entry; nothing is refused after it was queued.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pydantic import ValidationError

from edge_agent.errors import BadInput
from edge_agent.ledger.clock import Instant
from wire_protocol import names
from wire_protocol.entries import Count, EntryKind, LedgerEntry, Movement, Reading, default_route
from wire_protocol.errors import InvalidEntry
from wire_protocol.messages import DeviceEvent, DeviceReading
from wire_protocol.problems import REASON_CHARS_MAX, first_problem
from wire_protocol.times import TimeDoubt, device_time

LATE_MS_MAX: Final = 30 * 24 * 3600 * 1000  # the default of edge.device_late_s_max


class Arrival(NamedTuple):
    """When a device's message arrived at the gateway, and how old what it says was by then."""

    at: Instant
    age_ms: int = 0
    doubt: TimeDoubt | None = None

    @classmethod
    def of(cls, message: DeviceEvent | DeviceReading, at: Instant, late_ms_max: int = LATE_MS_MAX) -> "Arrival":
        """The arrival of a message at a moment."""
        return cls(at, *device_time(message.age_ms, message.at_ms, at.wall_ms, late_ms_max))


class Stamp(NamedTuple):
    """What the ledger gives an entry: its place, when it was recorded, and how long before that it happened."""

    hlc: int
    boot: str
    mono_ms: int
    late_ms: int | None = None
    doubt: TimeDoubt | None = None


@dataclass(slots=True, kw_only=True)
class Draft:
    """A movement or a count without its time; `device` and `event` are None for a technician's own entry.

    Invariant: it is not changed after it was made. It is not frozen, which would cost each event a microsecond.
    """

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
    device: str | None = None
    event: str | None = None
    device_at_ms: int | None = None
    arrival: Arrival | None = None
    _facts: LedgerEntry | None = field(default=None, init=False, repr=False, compare=False)

    def entry(self, stamp: Stamp) -> LedgerEntry:
        """The ledger entry this draft becomes.

        Raises:
            ValidationError: there is no such entry; never for a draft that `draft` has made.
        """
        update: dict[str, int | str] = {"hlc": stamp.hlc, "boot": stamp.boot, "mono_ms": stamp.mono_ms}
        if stamp.late_ms is not None:
            update["late_ms"] = stamp.late_ms
        if stamp.doubt is not None:
            update["time_doubt"] = stamp.doubt
        return self.facts().model_copy(update=update)

    def facts(self) -> LedgerEntry:
        """What the entry says, with a stamp that says nothing: validated once, however often it is stamped."""
        if self._facts is None:
            self._facts = self._validated()
        return self._facts

    def _validated(self) -> LedgerEntry:
        common = {
            **_NO_STAMP,
            "sku": self.sku,
            "quantity": self.quantity,
            "lot": self.lot,
            "serial": self.serial,
            "actor": self.actor,
            "reference": self.reference,
            "device": self.device,
            "event": self.event,
            "device_at_ms": self.device_at_ms,
        }
        if self.kind == "count":
            return Count.model_validate(common | {"location": self.location})
        route = {"kind": self.kind, "source": self.source, "destination": self.destination}
        return Movement.model_validate(common | route)


@dataclass(frozen=True, slots=True)
class ReadingDraft:
    """A sensor reading without its time."""

    device: str
    event: str
    values: dict[str, float]
    device_at_ms: int | None = None
    arrival: Arrival | None = None

    def entry(self, stamp: Stamp) -> Reading:
        """The ledger entry this draft becomes."""
        return Reading(
            hlc=stamp.hlc,
            boot=stamp.boot,
            mono_ms=stamp.mono_ms,
            late_ms=stamp.late_ms,
            time_doubt=stamp.doubt,
            device=self.device,
            event=self.event,
            values=self.values,
            device_at_ms=self.device_at_ms,
        )


def draft(kind: EntryKind, sku: str, quantity: int, **fields: str | int | Arrival | None) -> Draft:
    """Make a draft, filling in the location that follows from the kind.

    It is a door: names have the one spelling here (`names.misspelt`), which entries of other gateways need not have.

    Raises:
        BadInput: it is malformed or impossible; the message names the field.
    """
    _require_spelling("sku", sku)
    for name in _NAMES:
        if (value := fields.get(name)) is not None:
            _require_spelling(name, value)
    source, destination, location = (_text(fields.pop(name, None)) for name in ("source", "destination", "location"))
    if kind == "count":
        if source is not None or destination is not None:
            raise BadInput("a count has a location, not a source or destination")
        if location is None:
            raise BadInput("a count needs a location")
    else:
        if location is not None:
            raise BadInput(f"a {kind} has a source and a destination, not a location")
        try:
            source, destination = default_route(kind, source, destination)
        except InvalidEntry as error:
            raise BadInput(str(error)) from None
    made = Draft(
        kind=kind,
        sku=sku,
        quantity=quantity,
        source=source,
        destination=destination,
        location=location,
        **fields,  # type: ignore[arg-type]  # validated by the trial entry below
    )
    try:
        made.facts()
    except ValidationError as error:
        raise BadInput(first_problem(error)) from None
    return made


def from_event(device: str, event: DeviceEvent, arrival: Arrival | None = None) -> Draft:
    """The draft of a device's event; one without an arrival happens when it is recorded.

    Raises:
        BadInput: the event contradicts itself.
    """
    return draft(
        event.kind,
        event.sku,
        event.quantity,
        source=event.source,
        destination=event.destination,
        location=event.location,
        lot=event.lot,
        serial=event.serial,
        actor=event.actor,
        reference=event.reference,
        device=device,
        event=event.id,
        device_at_ms=event.at_ms,
        arrival=arrival,
    )


def from_reading(device: str, reading: DeviceReading, arrival: Arrival | None = None) -> ReadingDraft:
    """The draft of a device's reading."""
    return ReadingDraft(device, reading.id, reading.values, reading.at_ms, arrival)


def _require_spelling(name: str, value: str | int | Arrival | None) -> None:
    if isinstance(value, str) and (problem := names.misspelt(value)) is not None:
        raise BadInput(f"{name}: {problem}"[:REASON_CHARS_MAX], hint=names.PATTERNS[names.TEXT_PATTERN])


def _text(value: str | int | Arrival | None) -> str | None:
    return value if isinstance(value, str) else None


_NAMES: Final = ("source", "destination", "location", "lot", "serial", "actor", "reference")
_NO_STAMP: Final = {"hlc": 0, "boot": "0" * 26, "mono_ms": 0}

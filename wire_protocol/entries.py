"""Ledger entries: movements, counts and readings.

An entry says what happened on the shelf. It is written once, at the edge, and means the same at both ends forever.

Invariant: an entry that validates is possible: quantities are positive, the two locations differ, and both agree with
the kind of the movement.
"""

from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import (
    AllowInfNan,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from wire_protocol import names
from wire_protocol.clock import HLC_MAX
from wire_protocol.errors import InvalidEntry
from wire_protocol.problems import first_problem

QUANTITY_MAX: Final = 10**12  # in base units: a million tonnes in grams; nine million such movements fit 64 bits
READING_VALUES_MAX: Final = 16
MONOTONIC_MS_MAX: Final = 1 << 47
TIME_DOUBT_PATTERN: Final = r"^[a-z][a-z-]{0,23}$"

MovementKind: TypeAlias = Literal["receive", "pick", "move", "ship", "arrive", "scrap", "correct"]
EntryKind: TypeAlias = Literal["receive", "pick", "move", "ship", "arrive", "scrap", "correct", "count"]

Quantity = Annotated[int, Field(ge=1, le=QUANTITY_MAX)]
QuantityOrZero = Annotated[int, Field(ge=0, le=QUANTITY_MAX)]
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
ReadingValues = Annotated[
    dict[MetricName, Annotated[float, AllowInfNan(False)]],
    Field(min_length=1, max_length=READING_VALUES_MAX),
]

# For each kind: what its source and its destination may be. `None` stands for any shelf; the first word of a tuple of
# virtual locations is the default when a device or a technician leaves it out.
_Ends: TypeAlias = tuple[tuple[str, ...] | None, tuple[str, ...] | None]
ROUTES: Final[dict[MovementKind, _Ends]] = {
    "receive": ((names.SUPPLIER, names.CUSTOMER), None),
    "pick": (None, (names.CUSTOMER,)),
    "move": (None, None),
    "ship": (None, (names.TRANSIT_PREFIX,)),
    "arrive": ((names.TRANSIT_PREFIX,), None),
    "scrap": (None, (names.SCRAP,)),
}


ROUTES_REMEMBERED_MAX: Final = 1 << 14  # a site's goods go the same ways every day


class _Base(BaseModel):
    """What every entry carries: its time, three ways, and who or what caused it.

    `boot` and `mono_ms` are when the gateway recorded it; `late_ms` is how long before that it happened, where it was
    delivered late and is believed, and then `hlc` is its place among what was recorded when it happened. `time_doubt`
    is why the time that a device gave was not believed (`times.TimeDoubt`).
    """

    # Models of the wire are built at their first use (by one thread at a time, since pydantic 2.14): a technician's
    # command would wait for dozens that it never uses.
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")

    hlc: Annotated[int, Field(ge=0, le=HLC_MAX)]
    boot: names.Ulid
    mono_ms: Annotated[int, Field(ge=0, le=MONOTONIC_MS_MAX)]
    device: names.DeviceName | None = None
    event: names.EventId | None = None
    device_at_ms: Annotated[int, Field(ge=0, le=MONOTONIC_MS_MAX)] | None = None
    late_ms: Annotated[int, Field(ge=1, le=MONOTONIC_MS_MAX)] | None = None
    time_doubt: Annotated[str, StringConstraints(pattern=TIME_DOUBT_PATTERN)] | None = None

    def body(self) -> str:
        """The entry as the ledger stores it: JSON without absent fields, in field order."""
        return self.model_dump_json(exclude_none=True)


class _Goods(_Base):
    sku: names.Sku
    lot: names.Lot | None = None
    serial: names.Serial | None = None
    actor: names.Actor | None = None
    reference: names.Reference | None = None


class Movement(_Goods):
    """A quantity, in the item's base unit, taken from one location and given to another."""

    kind: MovementKind
    quantity: Quantity
    source: names.LocationName
    destination: names.LocationName

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if problem := route_problem(self.kind, self.source, self.destination):
            raise ValueError(problem)
        return self


class Count(_Goods):
    """The quantity found at a location: absolute, and true from its time on."""

    kind: Literal["count"] = "count"
    quantity: QuantityOrZero
    location: names.LocationName

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if names.is_virtual(self.location):
            raise ValueError("a virtual location cannot be counted")
        return self


class Reading(_Base):
    """What a sensor measured."""

    kind: Literal["reading"] = "reading"
    values: ReadingValues


LedgerEntry: TypeAlias = Movement | Count
Entry = Annotated[Movement | Count | Reading, Field(discriminator="kind")]
ENTRIES: Final[TypeAdapter[list[Movement | Count | Reading]]] = TypeAdapter(
    list[Entry], config=ConfigDict(defer_build=True)
)
ENTRY: Final[TypeAdapter[Movement | Count | Reading]] = TypeAdapter(Entry, config=ConfigDict(defer_build=True))


def _fits(location: str, allowed: tuple[str, ...] | None) -> bool:
    if allowed is None:
        return not names.is_virtual(location)
    return location in allowed or (names.TRANSIT_PREFIX in allowed and location.startswith(names.TRANSIT_PREFIX))


@lru_cache(ROUTES_REMEMBERED_MAX)
def route_problem(kind: MovementKind, source: str, destination: str) -> str | None:
    """Why a movement of this kind cannot go from source to destination; None when it can."""
    if source == destination:
        return "source and destination are the same location"
    if not names.is_known_location(source) or not names.is_known_location(destination):
        return "a location that begins with '@' is not one the ledger defines"
    if kind == "correct":
        image_store = destination if source == names.ADJUST else source
        between = names.ADJUST in {source, destination} and not names.is_virtual(image_store)
        return None if between else "a correction goes between @adjust and a shelf"
    sources, destinations = ROUTES[kind]
    if not _fits(source, sources):
        return f"a {kind} cannot come from {source}"
    if not _fits(destination, destinations):
        return f"a {kind} cannot go to {destination}"
    return None


def default_route(kind: MovementKind, source: str | None, destination: str | None) -> tuple[str, str]:
    """Fill in the location that follows from the kind of a movement.

    Raises:
        InvalidEntry: a location is missing that does not follow from the kind.
    """
    sources, destinations = ROUTES.get(kind, (None, None))
    if source is None and sources and sources[0] != names.TRANSIT_PREFIX:
        source = sources[0]
    if destination is None and destinations and destinations[0] != names.TRANSIT_PREFIX:
        destination = destinations[0]
    if source is None or destination is None:
        missing = "source" if source is None else "destination"
        raise InvalidEntry(f"a {kind} needs a {missing}")
    return source, destination


def validate(rows: list[dict[str, Any]]) -> tuple[list[Movement | Count | Reading | None], list[tuple[int, str]]]:
    """Validate decoded rows.

    Returns:
        The entries, one for each row and None where a row is unusable, and (index, reason) of each unusable row.
    """
    try:
        return list(ENTRIES.validate_python(rows)), []
    except ValidationError:
        pass
    entries: list[Movement | Count | Reading | None] = []
    rejected: list[tuple[int, str]] = []
    for index, row in enumerate(rows):
        try:
            entries.append(ENTRY.validate_python(row))
        except ValidationError as error:
            entries.append(None)
            rejected.append((index, first_problem(error, below=1)))
    return entries, rejected

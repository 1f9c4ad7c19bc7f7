"""What is in a frame: its movements as columns, everything else entry by entry.

Nearly all entries are movements that a healthy gateway wrote, and a frame has them in columns already, so they stay
columns from the wire to COPY. They are judged column by column: texts that were found good before are only looked up,
and numbers are compared as arrays. Whatever is unusual about a frame, however little, makes it go the exact way: row by
row through the models of `wire_protocol.entries`, which alone say why an entry is refused.

Invariant: both ways find the same entries. A frame that the quick way takes has nothing that the exact way refuses.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import compress
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError

from cloud_store.base.ledger_numbers import MOVEMENT_KINDS
from wire_protocol import clock, entries, frames, names, times
from wire_protocol.entries import MONOTONIC_MS_MAX, QUANTITY_MAX, TIME_DOUBT_PATTERN, Count, Movement, Reading
from wire_protocol.errors import InvalidFrame
from wire_protocol.frames import Frame

TEXTS_REMEMBERED_MAX: Final = 200_000
DRIFT_MS_MAX: Final = 1 << 47
DELTA_MS_MAX: Final = 1 << 47  # between two entries, and of the first
_WALL_MS_MAX: Final = clock.HLC_MAX >> clock.COUNTER_BITS
_TICK_MAX: Final = (1 << clock.COUNTER_BITS) - 1
_OF_OTHERS: Final = ("location", "values")  # columns in which a movement has nothing

Numbers: TypeAlias = NDArray[np.int64]
Texts: TypeAlias = list[str]
SomeTexts: TypeAlias = list[str | None] | None
Entry: TypeAlias = Movement | Count | Reading
Validated: TypeAlias = tuple[Sequence[Entry | None], Sequence[tuple[int, str]]]


class Unusual(Exception):
    """Something in a frame is not as healthy gateways write it; perhaps it is wrong, perhaps only rare."""


@dataclass(frozen=True, slots=True)
class MovementColumns:
    """Movements in the order of their ledger; every column has one value for each.

    A column is absent where no movement has a value. `claimed_ms` is when they happened, as their frame tells
    (`times.claimed_ms`), Unix milliseconds; `device_at_ms` is what the device's clock showed.
    """

    seqs: Numbers
    hlcs: Numbers
    claimed_ms: Numbers
    quantities: Numbers
    kinds: Texts
    skus: Texts
    sources: Texts
    destinations: Texts
    lots: SomeTexts = None
    serials: SomeTexts = None
    devices: SomeTexts = None
    events: SomeTexts = None
    actors: SomeTexts = None
    references: SomeTexts = None
    device_at_ms: list[int | None] | None = None

    def __len__(self) -> int:
        return len(self.kinds)

    @classmethod
    def of(cls, movements: Iterable[tuple[int, Movement]], boots: Mapping[str, int]) -> "MovementColumns":
        """The columns of movements with their sequence numbers; `boots` is of the frame's header."""
        seqs, rows = [], []
        for seq, movement in movements:
            seqs.append(seq)
            rows.append(movement)
        return cls(
            seqs=_array(seqs),
            hlcs=_array([row.hlc for row in rows]),
            claimed_ms=_array([times.claimed_ms(row, boots) for row in rows]),
            quantities=_array([row.quantity for row in rows]),
            kinds=[row.kind for row in rows],
            skus=[row.sku for row in rows],
            sources=[row.source for row in rows],
            destinations=[row.destination for row in rows],
            lots=[row.lot for row in rows],
            serials=[row.serial for row in rows],
            devices=[row.device for row in rows],
            events=[row.event for row in rows],
            actors=[row.actor for row in rows],
            references=[row.reference for row in rows],
            device_at_ms=[row.device_at_ms for row in rows],
        )

    def where(self, keep: NDArray[np.bool_]) -> "MovementColumns":
        """Only the movements for which `keep`, an array as long as the columns, is true."""
        kept: dict[str, Any] = {}
        for field in fields(self):
            column = getattr(self, field.name)
            if isinstance(column, np.ndarray):
                kept[field.name] = column[keep]
            elif column is not None:
                kept[field.name] = list(compress(column, keep))
        return MovementColumns(**kept)


class FrameEntries(NamedTuple):
    """The entries of a frame: its movements, the others with their sequence numbers, and (row, reason) of the unusable.

    `unreadable` says why the frame has no rows at all.
    """

    movements: MovementColumns
    others: list[tuple[int, Entry]]
    problems: Sequence[tuple[int, str]]
    unreadable: str | None = None


_NO_NUMBERS: Final = np.zeros(0, dtype=np.int64)
NONE: Final = MovementColumns(_NO_NUMBERS, _NO_NUMBERS, _NO_NUMBERS, _NO_NUMBERS, [], [], [], [])


def by_columns(frame: Frame) -> FrameEntries:
    """Read a ledger frame the quick way.

    Raises:
        Unusual: it must be read the exact way.
    """
    try:
        return _by_columns(frame)
    except (TypeError, ValueError, OverflowError, InvalidFrame) as error:
        raise Unusual from error


def one_by_one(frame: Frame, validated: Validated) -> FrameEntries:
    """Sort what the exact way has found."""
    if frame.problem is not None:
        return FrameEntries(NONE, [], [], frame.problem)
    found, problems = validated
    movements: list[tuple[int, Movement]] = []
    others: list[tuple[int, Entry]] = []
    for seq, entry in enumerate(found, frame.header.first_seq):
        if entry is None:
            continue
        if isinstance(entry, Movement) and frame.header.stream == "ledger":
            movements.append((seq, entry))
        else:
            others.append((seq, entry))
    return FrameEntries(MovementColumns.of(movements, frame.header.boots), others, problems)


class _TextColumn:
    """What the texts of a column are like. Those that come again and again are remembered; their number is bounded.

    Texts that are plain ASCII are checked all at once, by the type's own pattern repeated, each with a line end, which
    none of them may have.
    """

    def __init__(self, kind: Any, pattern: str, *, recurring: bool = True) -> None:
        self._exact: TypeAdapter[str] = TypeAdapter(kind, config=ConfigDict(strict=True, defer_build=True))
        self._lines = re.compile(rf"(?:{pattern.removeprefix('^').removesuffix('$')}\n)*")
        self._recurring, self._good = recurring, set[str]()

    def check(self, column: Sequence[Any], *, optional: bool = False) -> None:
        """Find all texts good.

        Raises:
            Unusual: one of them may be wrong.
        """
        new = set(column) - self._good
        if None in new:
            if not optional:
                raise Unusual
            new.remove(None)
        if not new:
            return
        if not self._are_plain(new):
            self._check_each(new)
        if self._recurring:
            if len(self._good) + len(new) > TEXTS_REMEMBERED_MAX:
                self._good.clear()
            self._good |= new

    def _are_plain(self, texts: Collection[str]) -> bool:
        lines = "\n".join(texts) + "\n"
        return lines.isascii() and lines.count("\n") == len(texts) and self._lines.fullmatch(lines) is not None

    def _check_each(self, texts: Iterable[str]) -> None:
        try:
            for text in texts:
                self._exact.validate_python(text)
        except ValidationError as error:
            raise Unusual from error


_TEXT: Final = _TextColumn(names.Text, names.TEXT_PATTERN)
_UNIQUE_TEXT: Final = _TextColumn(names.Text, names.TEXT_PATTERN, recurring=False)
_EVENT: Final = _TextColumn(names.EventId, names.EVENT_ID_PATTERN, recurring=False)
_DEVICE: Final = _TextColumn(names.DeviceName, names.DEVICE_PATTERN)
_BOOT: Final = _TextColumn(names.Ulid, names.ULID_PATTERN)
_DOUBT: Final = _TextColumn(Annotated[str, StringConstraints(pattern=TIME_DOUBT_PATTERN)], TIME_DOUBT_PATTERN)
_routes_known: Final = set[tuple[str, str, str]]()


def _by_columns(frame: Frame) -> FrameEntries:
    if not isinstance(frame.columns, dict) or frame.header.stream != "ledger":
        raise Unusual
    wire = _Wire(frame.columns, frame.header.count)
    kinds = wire.required("kind")
    kept: NDArray[np.bool_] | None = None
    others: list[tuple[int, Entry]] = []
    problems: list[tuple[int, str]] = []
    if "count" in (found := set(kinds)):
        kept = np.array([kind != "count" for kind in kinds])
        others, problems = _counts(frame, np.flatnonzero(~kept).tolist())
    if not found - {"count"} <= MOVEMENT_KINDS.keys():
        raise Unusual
    movements = _movements(wire, frame, kept)
    return FrameEntries(movements, others, problems)


def _counts(frame: Frame, rows: list[int]) -> tuple[list[tuple[int, Entry]], list[tuple[int, str]]]:
    found, problems = entries.validate(frames.rows_at(frame, rows))
    seqs = (frame.header.first_seq + row for row in rows)
    counts = [(seq, entry) for seq, entry in zip(seqs, found, strict=True) if entry is not None]
    return counts, [(rows[index], problem) for index, problem in problems]


class _Wire:
    """The columns of a frame as they were sent: a list, one value for all rows, or absent."""

    def __init__(self, columns: dict[str, Any], count: int) -> None:
        self._columns, self._count = columns, count

    def required(self, name: str) -> list[Any]:
        column = self._columns.get(name)
        if not isinstance(column, list):
            return [column] * self._count
        if len(column) != self._count:
            raise Unusual
        return column

    def optional(self, name: str) -> list[Any] | None:
        """None where no row has a value."""
        return None if self._columns.get(name) is None else self.required(name)

    def integers(self, name: str, low: int, high: int, *, cumulated: bool = False) -> Numbers | int:
        """An array of integers, each within its bounds; 0 for an absent column."""
        if name not in self._columns:
            return 0
        column = _array(self.required(name))
        if cumulated:
            # No sum of so few can leave 64 bits.
            if column.min() < -DELTA_MS_MAX or column.max() > DELTA_MS_MAX:
                raise Unusual
            column = column.cumsum()
        if column.min() < low or column.max() > high:
            raise Unusual
        return column


def _movements(wire: _Wire, frame: Frame, kept: NDArray[np.bool_] | None) -> MovementColumns:
    """All rows as movements, and of those the ones that are kept, found good."""
    header = frame.header
    ms = wire.integers("ms", 0, _WALL_MS_MAX, cumulated=True)
    tick = wire.integers("tick", 0, _TICK_MAX)
    mono_ms = ms - wire.integers("drift_ms", -DRIFT_MS_MAX, DRIFT_MS_MAX)
    boots = wire.required("boot")
    claimed = _claimed_ms(wire, boots, header.boots, ms, mono_ms)
    columns = MovementColumns(
        seqs=np.arange(header.first_seq, header.first_seq + header.count, dtype=np.int64),
        hlcs=_sized(ms, header.count) << clock.COUNTER_BITS | tick,
        claimed_ms=_sized(claimed, header.count),
        quantities=_array(wire.required("quantity")),
        kinds=wire.required("kind"),
        skus=wire.required("sku"),
        sources=wire.required("source"),
        destinations=wire.required("destination"),
        lots=wire.optional("lot"),
        serials=wire.optional("serial"),
        devices=wire.optional("device"),
        events=wire.optional("event"),
        actors=wire.optional("actor"),
        references=wire.optional("reference"),
        device_at_ms=_device_at_ms(wire),
    )
    if np.min(mono_ms) < 0 or np.max(mono_ms) > MONOTONIC_MS_MAX:
        raise Unusual
    others = [wire.optional(name) for name in _OF_OTHERS]
    if kept is not None:
        columns = columns.where(kept)
        others = [None if column is None else list(compress(column, kept)) for column in others]
    if any(value is not None for column in others if column is not None for value in column):
        raise Unusual
    _BOOT.check(boots)
    if (doubts := wire.optional("time_doubt")) is not None:
        _DOUBT.check(doubts, optional=True)
    _check(columns)
    return columns


def _check(columns: MovementColumns) -> None:
    """What is left to say that these movements are as the models of entries want them."""
    if not len(columns):
        return
    if columns.quantities.min() < 1 or columns.quantities.max() > QUANTITY_MAX:
        raise Unusual
    for required in (columns.skus, columns.sources, columns.destinations):
        _TEXT.check(required)
    for checks, column in (
        (_TEXT, columns.lots),
        (_TEXT, columns.actors),
        (_UNIQUE_TEXT, columns.serials),
        (_UNIQUE_TEXT, columns.references),
        (_DEVICE, columns.devices),
        (_EVENT, columns.events),
    ):
        if column is not None:
            checks.check(column, optional=True)
    new = set(zip(columns.kinds, columns.sources, columns.destinations, strict=True)) - _routes_known
    for kind, source, destination in new:
        if entries.route_problem(kind, source, destination) is not None:
            raise Unusual
    if len(_routes_known) + len(new) > TEXTS_REMEMBERED_MAX:
        _routes_known.clear()
    _routes_known.update(new)


def _claimed_ms(
    wire: _Wire, boots: Sequence[Any], zeros: Mapping[str, int], ms: Numbers | int, mono_ms: Numbers | int
) -> Numbers | int:
    """As `times.claimed_ms`, for all rows."""
    late_ms: Numbers | int = 0
    if (late := wire.optional("late_ms")) is not None:
        late_ms = _array_or_zero(late)
        if 0 in late or late_ms.min() < 0 or late_ms.max() > MONOTONIC_MS_MAX:
            raise Unusual
    if not zeros:
        return ms
    zero_of = [zeros.get(boot) for boot in boots]
    true_ms = mono_ms - late_ms + np.array([zero or 0 for zero in zero_of], dtype=np.int64)
    return np.where(np.array([zero is None for zero in zero_of]), ms, true_ms)


def _device_at_ms(wire: _Wire) -> list[int | None] | None:
    column = wire.optional("device_at_ms")
    if column is None:
        return None
    if None not in column:
        numbers = wire.integers("device_at_ms", 0, MONOTONIC_MS_MAX, cumulated=True)
        assert isinstance(numbers, np.ndarray)  # noqa: S101 - the column is there
        whole: list[int | None] = numbers.tolist()
        return whole
    # With gaps there are no differences: each value is whole.
    numbers = _array_or_zero(column)
    if numbers.min() < 0 or numbers.max() > MONOTONIC_MS_MAX:
        raise Unusual
    return column


def _array(numbers: Sequence[Any]) -> Numbers:
    """Numbers as an array.

    Raises:
        Unusual: not all are integers.
    """
    if numbers and set(map(type, numbers)) != {int}:
        raise Unusual
    return np.array(numbers, dtype=np.int64)


def _array_or_zero(numbers: Sequence[Any]) -> Numbers:
    return _array([0 if number is None else number for number in numbers])


def _sized(numbers: Numbers | int, count: int) -> Numbers:
    return np.full(count, numbers, dtype=np.int64) if isinstance(numbers, int) else numbers

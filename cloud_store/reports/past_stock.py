"""Stock of cells in the past: the latest count of each among the entries of a question, and what moved after it.

What moved is added up by whole hours of a shelf's history (`cell_history`). Movements are read one by one in the hours
that the count or one of the two times cuts, and all of them where a history is not whole. A virtual location has no
history: its movements are found by the shelves at their other side.

Invariant: all statements of a question see one snapshot, which the caller has opened.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any, Final, NamedTuple

from cloud_store.base import sql
from cloud_store.base.arrays import Integers
from cloud_store.base.connection import Connection
from cloud_store.base.ledger_numbers import HOUR_OF_HLC, NEVER, CellKey
from cloud_store.merge.cursors import STREAM_NUMBERS
from wire_protocol.stock import EntryKey

_SQL: Final = sql.load("history")
_UNCOUNTED: Final = EntryKey(NEVER, "", "", 0)
_HOUR_S: Final = 3_600
_HOUR_MAX: Final = (1 << 31) - 1
_HLC_MAX: Final = (1 << 63) - 1


class HeldCell(NamedTuple):
    """A cell that has a balance; `moved` is the sum of all its movements."""

    cell: CellKey
    virtual: bool
    moved: int
    history_whole: bool


class _Count(NamedTuple):
    """The latest count of a cell, or none."""

    key: EntryKey = _UNCOUNTED
    quantity: int = 0

    @property
    def hour(self) -> int:
        return -1 if self.key is _UNCOUNTED else self.key.hlc // HOUR_OF_HLC


class _Stretch(NamedTuple):
    """Movements of a shelf's cell to be read one by one, by the hybrid logical clock, both ends included."""

    held: HeldCell
    from_hlc: int
    to_hlc: int


@dataclass(frozen=True)
class PastStock:
    """A question: which entries count, as parameters of the statements."""

    connection: Connection
    parameters: Mapping[str, Any]

    @classmethod
    def asked(
        cls, connection: Connection, tenant: str, site: str | None, at: datetime | None, known_at: datetime | None
    ) -> "PastStock":
        """The entries of a tenant, or of one of its sites, that happened by `at` and were received by `known_at`."""
        known: list[tuple[Any, ...]] = []
        if known_at is not None:
            wanted = {"tenant": tenant, "site": site, "known_at": known_at, "stream": STREAM_NUMBERS["ledger"]}
            known = connection.execute(_SQL["known"], wanted, prepare=False).fetchall()
        return cls(
            connection,
            {
                "at": at,
                "known_at": known_at,
                "at_hour": _hour(at),
                "known_hour": _hour(known_at),
                "kept": NEVER if known_at is None else 0,  # what has no hour of arrival is looked at one by one
                "known_epochs": Integers(epoch_id for epoch_id, _ in known),
                "known_seqs": Integers(seq for _, seq in known),
            },
        )

    def on_hand(self, cells: Iterable[HeldCell]) -> dict[CellKey, int]:
        """What was in each cell."""
        held = sorted(set(cells))
        counts = self._counts(held)
        found = {each.cell: counts[each.cell].quantity for each in held}
        shelves = [each for each in held if not each.virtual]
        for cell, moved in chain(self._moved(shelves, counts), self._moved_outside([e for e in held if e.virtual])):
            found[cell] += moved
        return found

    def _counts(self, held: Sequence[HeldCell]) -> dict[CellKey, _Count]:
        found = {each.cell: _Count() for each in held}
        for place, *key, quantity in self._execute("counts", held):
            found[held[place].cell] = _Count(EntryKey(*key), quantity)
        return found

    def _moved(self, shelves: Sequence[HeldCell], counts: Mapping[CellKey, _Count]) -> Iterable[tuple[CellKey, int]]:
        whole, stretches = self._by_hours([each for each in shelves if each.history_whole], counts)
        yield from whole.items()
        stretches += [
            _Stretch(each, max(0, counts[each.cell].key.hlc), _HLC_MAX) for each in shelves if each.cell not in whole
        ]
        keys = [counts[stretch.held.cell].key for stretch in stretches]
        columns = {
            "from_hlcs": Integers(stretch.from_hlc for stretch in stretches),
            "to_hlcs": Integers(stretch.to_hlc for stretch in stretches),
            "hlcs": Integers(key.hlc for key in keys),
            "gateways": [key.gateway for key in keys],
            "epochs": [key.epoch for key in keys],
            "seqs": Integers(key.seq for key in keys),
        }
        for place, moved in self._execute("moved", [stretch.held for stretch in stretches], columns):
            yield stretches[place].held.cell, moved

    def _by_hours(
        self, shelves: Sequence[HeldCell], counts: Mapping[CellKey, _Count]
    ) -> tuple[dict[CellKey, int], list[_Stretch]]:
        """What moved in whole hours, of cells whose history adds up; and the hours of these that must be looked at."""
        counted = {"counted_hours": Integers(counts[each.cell].hour for each in shelves)}
        moved_ever = [0] * len(shelves)
        cut: list[set[int]] = [set() for _ in shelves]
        for place, hour, moved, is_asked in self._execute("recent_hours", shelves, counted):
            moved_ever[place] += moved
            if is_asked:
                cut[place].add(hour)
        recent = [(place, hour) for place, hours in enumerate(cut) for hour in hours]
        columns = {
            "recent_places": Integers(place for place, _ in recent),
            "recent_hours": Integers(hour for _, hour in recent),
        }
        inside = [0] * len(shelves)
        for place, moved, moved_inside, hours in self._execute("hours", shelves, counted | columns):
            moved_ever[place] += moved
            inside[place] = moved_inside
            cut[place].update(hours or ())
        adding_up = [place for place, each in enumerate(shelves) if moved_ever[place] == each.moved]
        stretches = [
            _Stretch(shelves[place], hour * HOUR_OF_HLC, (hour + 1) * HOUR_OF_HLC - 1)
            for place in adding_up
            for hour in cut[place]
        ]
        return {shelves[place].cell: inside[place] for place in adding_up}, stretches

    def _moved_outside(self, held: Sequence[HeldCell]) -> Iterable[tuple[CellKey, int]]:
        for place, moved in self._execute("moved_outside", held):
            yield held[place].cell, moved

    def _execute(
        self, name: str, held: Sequence[HeldCell], columns: Mapping[str, Any] | None = None
    ) -> Iterable[tuple[Any, ...]]:
        if not held:
            return ()
        locations, items, lots = zip(*(each.cell for each in held), strict=True)
        cells = {"locations": Integers(locations), "items": Integers(items), "lots": Integers(lots)}
        # Planned afresh each time: how many cells there are decides.
        return self.connection.execute(_SQL[name], {**self.parameters, **cells, **(columns or {})}, prepare=False)


def _hour(time: datetime | None) -> int:
    """The Unix hour of a time, or one after all."""
    return _HOUR_MAX if time is None else int(time.timestamp() // _HOUR_S)

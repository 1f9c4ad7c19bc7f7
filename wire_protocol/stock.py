"""What stock is: the one definition, as plain Python over a set of entries (the oracle), and its incremental form.

    on_hand(location, sku, lot) = the quantity of the latest count there, or 0,
    plus the movements into it minus the movements out of it that are later than that count.

"Later" is by key: hybrid logical clock, ties by gateway, epoch and sequence number. A count's variance is the quantity
found minus what the entries before it give; it is booked against `@adjust`, so the sum over all locations stays zero. A
pick that arrives two days late therefore changes the variance of the count that already covered it, and not the stock.

SQLite at the edge and SQL in TimescaleDB are fast implementations of this; tests hold them to it. The entries are
those of one site; sites share nothing but goods in transit, which each books for itself.

Invariant: every function here is a pure function of its arguments, whatever the order of the entries.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from wire_protocol.entries import Count, LedgerEntry, Movement
from wire_protocol.names import ADJUST

# The domain of stock: what is on hand in a cell, and what was ever moved into or out of it. Both stores add in 64 bits;
# this leaves room for a batch on top of a cell at its bound.
BALANCE_MAX: Final = 1 << 60


def in_domain(quantity: int) -> bool:
    """Whether a balance can be this."""
    return -BALANCE_MAX <= quantity <= BALANCE_MAX


class EntryKey(NamedTuple):
    """The total order of a site's entries.

    A log is the run of entries of one gateway in one epoch; a gateway that was restored or replaced has several.
    """

    hlc: int
    gateway: str
    epoch: str
    seq: int


class Cell(NamedTuple):
    """What a balance is kept for; `lot` is empty for goods without one."""

    location: str
    sku: str
    lot: str


class Delta(NamedTuple):
    """One side of a movement."""

    cell: Cell
    quantity: int


@dataclass(slots=True)
class Stock:
    """On hand by cell (zero cells left out), and the variance of each count."""

    on_hand: dict[Cell, int] = field(default_factory=dict)
    variance: dict[EntryKey, int] = field(default_factory=dict)


def deltas(movement: Movement) -> tuple[Delta, Delta]:
    """The double entry of a movement: what the source gives and the destination gets."""
    lot = movement.lot or ""
    return (
        Delta(Cell(movement.source, movement.sku, lot), -movement.quantity),
        Delta(Cell(movement.destination, movement.sku, lot), movement.quantity),
    )


def counted_cell(count: Count) -> Cell:
    """The cell a count is about."""
    return Cell(count.location, count.sku, count.lot or "")


def oracle(entries: Iterable[tuple[EntryKey, LedgerEntry]]) -> Stock:
    """The stock that a set of entries gives. Repeated entries (same key) count once; order does not matter."""
    book: defaultdict[Cell, int] = defaultdict(int)
    stock = Stock()
    for key, entry in sorted(dict(entries).items()):
        if isinstance(entry, Count):
            cell = counted_cell(entry)
            stock.variance[key] = entry.quantity - book[cell]
            book[cell] = entry.quantity
            book[Cell(ADJUST, cell.sku, cell.lot)] -= stock.variance[key]
        else:
            for cell, quantity in deltas(entry):
                book[cell] += quantity
    stock.on_hand = {cell: quantity for cell, quantity in book.items() if quantity}
    return stock


class Balance(NamedTuple):
    """One cell as it is kept incrementally.

    `moved` is the sum of all movements ever, whatever their time; `on_hand` - `moved` is what counts have added, so
    the share of this cell in `@adjust` is `moved` - `on_hand`. `last` is the latest movement seen: a count later than
    it needs no look back.
    """

    on_hand: int = 0
    moved: int = 0
    counted: EntryKey | None = None
    last: EntryKey | None = None

    def after_movement(self, key: EntryKey, quantity: int) -> "Balance":
        """Book one side of a movement, early or late."""
        covered = self.counted is not None and key < self.counted
        last = key if self.last is None else max(self.last, key)
        return self._replace(
            on_hand=self.on_hand if covered else self.on_hand + quantity, moved=self.moved + quantity, last=last
        )

    def after_count(self, key: EntryKey, quantity: int, moved_since: int) -> "Balance":
        """Book a count; `moved_since` is the sum of the movements here that are later than it."""
        if self.counted is not None and key < self.counted:
            return self
        return self._replace(on_hand=quantity + moved_since, counted=key)

    def looks_back(self, key: EntryKey) -> bool:
        """Whether a count with this key has movements or counts after it, so that history must be consulted."""
        return any(other is not None and key < other for other in (self.counted, self.last))


def imbalance(on_hand: Iterable[tuple[Cell, int]]) -> dict[tuple[str, str], int]:
    """The sum over all locations by (sku, lot) where it is not zero; empty means that the double entry holds."""
    totals: defaultdict[tuple[str, str], int] = defaultdict(int)
    for cell, quantity in on_hand:
        totals[cell.sku, cell.lot] += quantity
    return {key: total for key, total in totals.items() if total}


def differences(left: Iterable[tuple[Cell, int]], right: Iterable[tuple[Cell, int]]) -> Iterator[tuple[Cell, int, int]]:
    """The cells in which two sets of balances differ, sorted; an absent cell is zero."""
    ours, theirs = dict(left), dict(right)
    for cell in sorted(ours.keys() | theirs.keys()):
        if ours.get(cell, 0) != theirs.get(cell, 0):
            yield cell, ours.get(cell, 0), theirs.get(cell, 0)

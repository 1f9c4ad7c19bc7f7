"""Rows that are read back: each in a guard of its own, so that one that cannot be read keeps none of the others.

What is in the database is input too: an older release wrote it, an operator edited it, or somebody found a gap.
"""

from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")


class UnreadableRow(NamedTuple):
    """A row that nothing can be made of: the gateway it is about, and why."""

    gateway: str
    error: Exception


class ReadRows(NamedTuple, Generic[T]):
    """What was made of rows, and the rows of which nothing could be made."""

    made: list[T]
    unreadable: list[UnreadableRow]

    @property
    def total(self) -> int:
        """How many rows were read."""
        return len(self.made) + len(self.unreadable)


def read_each(rows: Iterable[tuple[Any, ...]], make: Callable[..., T]) -> ReadRows[T]:
    """Make something of each row; the first column of a row is its gateway."""
    found: ReadRows[T] = ReadRows([], [])
    for row in rows:
        try:
            found.made.append(make(*row))
        except Exception as error:  # noqa: BLE001 - one row must not keep the others from their gateways
            found.unreadable.append(UnreadableRow(row[0], error))
    return found

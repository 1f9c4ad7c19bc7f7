"""Messages that wait for the database: the latest under each key, bounded in number and in bytes.

While the database is away for hours, a fleet goes on reporting, replying and asking. What is kept of that must not grow
with the time it takes.

Invariant: a message that does not fit is not taken, and its sender is told nothing: it reports, replies or asks again.
"""

from collections.abc import Iterator, Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Waiting(Mapping[K, V]):
    """Messages by key, in the order in which their keys came."""

    def __init__(self, *, messages_max: int, bytes_max: int) -> None:
        self._messages_max, self._bytes_max = messages_max, bytes_max
        self._messages: dict[K, V] = {}
        self._sizes: dict[K, int] = {}
        self._bytes = 0

    def put(self, key: K, message: V, size: int) -> bool:
        """Keep a message of `size` bytes in the place of the last under its key. Returns whether there was room."""
        total = self._bytes + size - self._sizes.get(key, 0)
        if total > self._bytes_max or (key not in self._messages and len(self._messages) >= self._messages_max):
            return False
        self._messages[key], self._sizes[key], self._bytes = message, size, total
        return True

    def __getitem__(self, key: K) -> V:
        return self._messages[key]

    def __delitem__(self, key: K) -> None:
        del self._messages[key]
        self._bytes -= self._sizes.pop(key)

    def __iter__(self) -> Iterator[K]:
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._messages)

    def pop_first(self) -> tuple[K, V]:
        """Take the message out that has waited longest; there must be one."""
        key, message = next(iter(self._messages.items()))
        del self[key]
        return key, message

    def discard(self, key: K, message: V) -> None:
        """Take a message out that was dealt with, unless a later one has taken its place."""
        if self._messages.get(key) is message:
            del self[key]

    def clear(self) -> None:
        """Take everything out."""
        self._messages.clear()
        self._sizes.clear()
        self._bytes = 0

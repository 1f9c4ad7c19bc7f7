"""How a service receives: a mailbox with the latest message of each sender, and the loop that serves it.

A service keeps two things of its own, how a message is decoded and the step that answers one. Everything that every
service needs is here: a bound, fairness between senders, trying again while the database is away, and the guard that
keeps one bad message from ending or holding up anything.

Invariant: a service ends only when it is cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

import structlog

from cloud_ingest.token_bucket import TokenBucket
from cloud_store.base.errors import DatabaseUnavailable, StoreTimeout

RETRY_S: Final = 1.0
ITEMS_OF_A_SENDER_MAX: Final = 64
ATTEMPTS_MAX: Final = 3  # of an item that the database does not finish in time
_LOG = structlog.get_logger()

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Step: TypeAlias = Callable[[K, V], Awaitable[None]]
# Called for an item that failed: the service, the item's gateway if it has one, and the error.
Report: TypeAlias = Callable[[str, str | None, Exception], None]


@dataclass(slots=True)
class _Item(Generic[V]):
    value: V
    size_bytes: int


class Mailbox(Generic[K, V]):
    """The latest value of each key, served in the order in which the keys came in.

    A key is a sender's name, or a tuple that begins with it. A value that comes in while the one before is being
    answered is kept and served next. What does not fit is refused and counted: its sender sends it again.

    Args:
        name: for metrics and logs.
        items_max: keys that wait at most.
        bytes_max: bytes of what waits at most.
        refused: called for each value that did not fit.
    """

    def __init__(
        self,
        name: str,
        *,
        items_max: int,
        bytes_max: int = 64 * 1024 * 1024,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self._items_max, self._bytes_max, self._refused = name, items_max, bytes_max, refused
        self._items: dict[K, _Item[V]] = {}
        self._of_sender: dict[str | None, int] = {}
        self._bytes = 0
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, key: K, value: V, size_bytes: int = 0) -> bool:
        """Keep a value instead of the one before of the same key. Returns False when there is no room for it."""
        before = self._items.get(key)
        room = self._bytes_max - self._bytes + (before.size_bytes if before is not None else 0)
        if size_bytes > room or (before is None and not self._admits(key)):
            self._refused()
            return False
        if before is None:
            sender = sender_of(key)
            self._of_sender[sender] = self._of_sender.get(sender, 0) + 1
        self._bytes = self._bytes_max - room + size_bytes
        self._items[key] = _Item(value, size_bytes)
        self._filled.set()
        return True

    async def wait(self) -> None:
        """Wait until something is there."""
        await self._filled.wait()

    async def take(self) -> tuple[K, V, int]:
        """Wait for the key that came in first; its value leaves the mailbox. Returns key, value and size in bytes."""
        await self._filled.wait()
        return self.pop()

    def pop(self) -> tuple[K, V, int]:
        """Take out the key that came in first, with its value and size in bytes."""
        key = next(iter(self._items))
        item = self._items.pop(key)
        self._bytes -= item.size_bytes
        sender = sender_of(key)
        self._of_sender[sender] -= 1
        if not self._of_sender[sender]:
            del self._of_sender[sender]
        if not self._items:
            self._filled.clear()
        return key, item.value, item.size_bytes

    def values(self) -> list[V]:
        """Everything that waits, in the order in which the keys came in."""
        return [item.value for item in self._items.values()]

    def restore(self, key: K, value: V, size_bytes: int) -> None:
        """Put back what could not be served now, unless a newer value came in meanwhile."""
        if key not in self._items:
            self.put(key, value, size_bytes)

    def _admits(self, key: K) -> bool:
        return len(self._items) < self._items_max and self._of_sender.get(sender_of(key), 0) < ITEMS_OF_A_SENDER_MAX


class WakeUp(Mailbox[None, None]):
    """A mailbox for a service that has something to look after, whatever it is; several calls are one."""

    def __init__(self, name: str) -> None:
        super().__init__(name, items_max=1)

    def __call__(self) -> None:
        self.put(None, None)


def sender_of(key: Any) -> str | None:
    """The gateway that a key belongs to; None when it belongs to no single one."""
    first = key[0] if isinstance(key, tuple) else key
    return first if isinstance(first, str) else None


async def serve(
    mailbox: Mailbox[K, V],
    step: Step[K, V],
    failed: Report,
    *,
    rate: TokenBucket | None = None,
    retry_s: float = RETRY_S,
) -> None:
    """Answer what comes in, one at a time, until cancelled.

    While the database is away the same item is tried again. One that fails otherwise, or that the database did not
    finish in time for `ATTEMPTS_MAX` times, is logged, counted, raised as an alarm of its sender
    (`cloud_ingest.failures`), and dropped: it would fail again, and others are waiting behind it.

    Args:
        mailbox: where it comes in.
        step: answers one item.
        failed: called for an item that failed.
        rate: the bound of steps per second.
        retry_s: seconds until an item is tried again.
    """
    timeouts: dict[K, int] = {}
    while True:
        await mailbox.wait()
        if rate is not None:
            await rate.acquire()
        key, value, size_bytes = mailbox.pop()
        attempts = timeouts.pop(key, 0)
        try:
            await step(key, value)
        except DatabaseUnavailable as error:
            attempts += isinstance(error, StoreTimeout)
            if attempts >= ATTEMPTS_MAX:
                failed(mailbox.name, sender_of(key), error)
                continue
            _LOG.warning("database_unavailable", service=mailbox.name, reason=str(error), hint=error.hint)
            if attempts:
                timeouts[key] = attempts
            mailbox.restore(key, value, size_bytes)
            await asyncio.sleep(retry_s)
        except Exception as error:  # noqa: BLE001 - the rule of this loop: nothing that comes in ends a service
            failed(mailbox.name, sender_of(key), error)


async def every(interval_s: float, name: str, step: Callable[[], Awaitable[None]], failed: Report) -> None:
    """Take a step now and then, until cancelled; one that fails is reported, and the next one comes all the same."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await step()
        except DatabaseUnavailable as error:
            _LOG.warning("database_unavailable", service=name, reason=str(error), hint=error.hint)
        except Exception as error:  # noqa: BLE001 - as in `serve`
            failed(name, None, error)

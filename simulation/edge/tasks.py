"""Tasks without asyncio: production's coroutines, which wait for nothing but writes to the ledger.

So the receiving and the pumping task of a contact meet between any two commits, as production's do; a write for which
there is no room is tried again, as production does it.

Invariant: a task ends with its contact; the write it waited for is committed all the same.
"""

from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.recovery import Opened
from edge_agent.link.shipping import EpochOpened

RETRY_MS: Final = 1_000

T = TypeVar("T")
Run = Callable[[Ledger], Any]
Task = Coroutine[Run, Any, None]


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """A write that is waited for: whoever runs the task carries it out and sends what it returned."""

    run: Callable[[Ledger], T]

    def __await__(self) -> Generator[Run, T, T]:
        return (yield self.run)


class Writer(Protocol):
    """Who carries out the writes."""

    def submit(self, run: Run, done: Callable[[Any], None], full: Callable[[], None]) -> None:
        """Queue a write."""

    def later(self, delay_ms: float, step: Callable[[], None]) -> None:
        """Run a step later."""


def run(
    writer: Writer,
    task: Task,
    ended: Callable[[], None],
    opened: Callable[[Opened], None],
    lasts: Callable[[], bool],
) -> None:
    """Run a task.

    Args:
        writer: who carries out its writes.
        task: the coroutine.
        ended: called when it has come to its end.
        opened: called when it has opened a new epoch.
        lasts: whether its contact still lasts.
    """

    def resume(sent: Any) -> None:
        if not lasts():
            task.close()
            return
        try:
            write = task.send(sent)
        except StopIteration:
            ended()
        except EpochOpened as end:
            opened(end.opened)
        else:
            submit(write)

    def submit(write: Run) -> None:
        if lasts():
            writer.submit(write, resume, lambda: writer.later(RETRY_MS, lambda: submit(write)))
        else:
            task.close()

    resume(None)

"""Tasks without asyncio: generators that yield writes to the ledger and are sent what those returned.

So the receiving and the pumping task of a contact meet between any two commits, as production's do; a write for which
there is no room is tried again, as production does it.

Invariant: a task ends with its contact; the write it waited for is committed all the same.
"""

from collections.abc import Callable, Generator
from typing import Any, Final, Protocol

from edge_agent.ledger import Ledger

RETRY_MS: Final = 1_000

Write = Callable[[Ledger], Any]
Steps = Generator[Write, Any, None]


class EpochOpened(Exception):
    """The ledger carries on in a new epoch; this contact was about the old one."""


class Writer(Protocol):
    """Who carries out the writes."""

    def submit(self, run: Write, done: Callable[[Any], None], full: Callable[[], None]) -> None:
        """Queue a write."""

    def later(self, delay_ms: float, step: Callable[[], None]) -> None:
        """Run a step later."""


def run(
    writer: Writer, steps: Steps, ended: Callable[[], None], opened: Callable[[], None], lasts: Callable[[], bool]
) -> None:
    """Run a task.

    Args:
        writer: who carries out its writes.
        steps: the task.
        ended: called when it has come to its end.
        opened: called when it has opened a new epoch.
        lasts: whether its contact still lasts.
    """

    def resume(sent: Any) -> None:
        if not lasts():
            return
        try:
            write = steps.send(sent)
        except StopIteration:
            ended()
        except EpochOpened:
            opened()
        else:
            submit(write)

    def submit(write: Write) -> None:
        if lasts():
            writer.submit(write, resume, lambda: writer.later(RETRY_MS, lambda: submit(write)))

    resume(None)

"""What the worker answers about logs: acknowledgements after a merge, and windows of zero while none is possible.

Sans-I/O: reports of merges go in, acknowledgements come out; the clock is the caller's.

Invariant: an acknowledgement is built only from the report of a committed merge, or repeats an older one.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from cloud_store.merge.arrivals import ArrivedFrame, LogKey, MergeReport
from wire_protocol.messages import Ack
from wire_protocol.replication import Receiver

LOGS_REMEMBERED_MAX: Final = 50_000


class Answer(NamedTuple):
    """An acknowledgement for the gateway of a log."""

    log: LogKey
    ack: Ack


class Answers:
    """The last receiver of each log, and which logs wait for the database with a window of zero."""

    def __init__(self) -> None:
        self._last: dict[LogKey, Receiver] = {}
        self._stalled: set[LogKey] = set()

    @property
    def is_stalled(self) -> bool:
        """Whether gateways got a window of zero, and nothing was merged since."""
        return bool(self._stalled)

    def is_merged(self, log: LogKey, frame: int) -> bool:
        """Whether a frame is known to be merged."""
        last = self._last.get(log)
        return last is not None and frame <= last.cursor.frame

    def stall(self, batch: Iterable[ArrivedFrame], now_ms: int) -> Iterator[Answer]:
        """The database is away: every gateway of the batch gets, once, a window of zero."""
        for log in sorted({arrived.log for arrived in batch} - self._stalled):
            self._stalled.add(log)
            if log in self._last:
                yield Answer(log, self._last[log].ack(now_ms, 0))

    def merged(self, report: MergeReport, now_ms: int, window: Callable[[LogKey], int]) -> Iterator[Answer]:
        """A merge was committed: its logs are acknowledged, and the other gateways that wait may go on."""
        waiting, self._stalled = self._stalled - report.streams.keys(), set()
        for log, outcome in report.streams.items():
            receiver = outcome.receiver
            self._remember(log, receiver)
            for ack in receiver.acks(
                now_ms, window(log), rejected=outcome.rejected, bounded=outcome.bounded, ask=False
            ):
                yield Answer(log, ack)
        for log in sorted(waiting & self._last.keys()):
            yield Answer(log, self._last[log].ack(now_ms, window(log), ask=True))

    def release(self, logs: Iterable[LogKey], now_ms: int, window: int) -> Iterator[Answer]:
        """Give gateways that had a window of zero a new one."""
        for log in logs:
            if log in self._last:
                yield Answer(log, self._last[log].ack(now_ms, window))

    def _remember(self, log: LogKey, receiver: Receiver) -> None:
        self._last.pop(log, None)
        if len(self._last) >= LOGS_REMEMBERED_MAX:
            del self._last[next(iter(self._last))]
        self._last[log] = receiver

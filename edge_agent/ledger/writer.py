"""The one writer of the agent: a thread that commits whatever is waiting in one transaction (group commit).

While one commit is on its way to the disk, the next events gather; under load a commit covers hundreds of events, and
at rest a single event is committed at once. No caller learns that a job is done before its commit is on the disk.

Invariant: jobs run in the order they were submitted, and each either commits as a whole or not at all. Invariant: a
write of a coroutine is committed or refused before the coroutine goes on, even a cancelled one.
"""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias, TypeVar

import structlog

from edge_agent.errors import EdgeError, LedgerBusy, LedgerFull
from edge_agent.ledger import database
from edge_agent.ledger.drafts import Draft, ReadingDraft
from edge_agent.ledger.ledger import Ledger

T = TypeVar("T")

QUEUE_JOBS_MAX: Final = 4_000
BATCH_JOBS_MAX: Final = 1_000
RETRY_DELAY_S: Final = 1.0
FULL_QUEUE_LOOK_S: Final = 0.2

log = structlog.get_logger("edge_agent.ledger.writer")


@dataclass(slots=True)
class Append:
    """Append one movement, count or reading; `outcome` is its sequence number, None for a repeated event."""

    draft: Draft | ReadingDraft
    token: Any
    outcome: int | None = None


@dataclass(slots=True)
class Job:
    """Anything else that writes, with a future for its result."""

    run: Callable[[Ledger], Any]
    future: "Future[Any]" = field(default_factory=Future)
    held: bool = False
    """Held like an event while the disk is full: the message behind it is in flight until it is acknowledged."""


Work: TypeAlias = Append | Job
Committed: TypeAlias = Callable[[list[Append]], None]
# What is written instead of an event that cannot be committed; None for nothing.
Refuse: TypeAlias = Callable[[Append, Exception], Job | None]


class Submit(Protocol):
    """Hands a write to the ledger's writer."""

    def __call__(self, run: Callable[[Ledger], T]) -> "Future[T]": ...


class Write(Protocol):
    """A write by the ledger's writer, waited for."""

    def __call__(self, run: Callable[[Ledger], T]) -> Awaitable[T]: ...


class LedgerWriter:
    """Runs the writer thread; use as a context manager.

    Args:
        ledger: opens the ledger; it is opened and closed in the thread that writes.
        committed: called in the writer's thread after each commit with the appends it covered.
        refusing: called with a reason when the disk is full, and with None when it takes events again.
    """

    def __init__(
        self,
        ledger: Callable[[], AbstractContextManager[Ledger]],
        *,
        committed: Committed,
        refusing: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self._open = ledger
        self._committed = committed
        self._refusing = refusing
        self.refuse: Refuse = lambda _append, _error: None
        """Called in the writer's thread for an event that fails alone, whatever is tried; set before it starts."""
        self._queue: queue.Queue[Work | None] = queue.Queue(QUEUE_JOBS_MAX)
        self._thread = threading.Thread(target=self._run, name="edge.writer", daemon=True)
        self._started: Future[None] = Future()
        self._stopping = threading.Event()
        self._drained = False
        self.ended: Future[None] = Future()
        """Resolves when the thread ends; with its error when it ended by one."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Commit what is queued, then stop."""
        self.close_intake()
        self._queue.put(None)
        self._thread.join()

    def append(self, draft: Draft | ReadingDraft, token: Any = None) -> None:
        """Queue an event; waits while the queue is full, which holds the device's broker back.

        Once the writer is closing, an event that finds no room is left to the broker, which delivers it again.
        """
        self._put(Append(draft, token))

    def settle(self, run: Callable[[Ledger], T]) -> "Future[T]":
        """Queue what is owed to a device's message that is no event; waits and is held as an event is."""
        job = Job(run, held=True)
        self._put(job)
        return job.future

    def _put(self, work: Work) -> None:
        while True:
            with suppress(queue.Full):
                self._queue.put(work, timeout=FULL_QUEUE_LOOK_S)
                return
            if self._stopping.is_set():
                return

    def close_intake(self) -> None:
        """Wait for nothing any more: neither for room in the queue nor on the disk. What is queued is still tried."""
        self._stopping.set()

    def submit(self, run: Callable[[Ledger], T]) -> "Future[T]":
        """Queue any other write, never waiting for room; the future resolves after the commit.

        Called in the event loop, so a full queue is reported as a busy ledger: the caller tries again.
        """
        job = Job(run)
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            job.future.set_exception(LedgerBusy())
        return job.future

    def depth(self) -> int:
        """How many jobs wait."""
        return self._queue.qsize()

    def _run(self) -> None:
        try:
            with self._open() as ledger:
                self._started.set_result(None)
                while not self._drained:
                    if batch := self._gather():
                        self._commit(ledger, batch)
        except BaseException as error:  # noqa: BLE001 - who waits for this thread must learn how it ended
            (self.ended if self._started.done() else self._started).set_exception(error)
        else:
            self.ended.set_result(None)

    def _gather(self) -> list[Work]:
        """Wait for one job and take what else is queued; notes when the end of the queue was reached."""
        batch: list[Work] = []
        work = self._queue.get()
        while work is not None:
            # From here on the job can no longer be cancelled: a caller that gives up on it finds it done.
            if isinstance(work, Append) or work.future.set_running_or_notify_cancel():
                batch.append(work)
            if len(batch) >= BATCH_JOBS_MAX:
                return batch
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                return batch
        self._drained = True
        return batch

    def _commit(self, ledger: Ledger, batch: list[Work]) -> None:
        try:
            results = self._attempt(ledger, batch)
        except (LedgerFull, LedgerBusy) as error:
            self._hold(ledger, batch, error)
        except Exception as error:  # noqa: BLE001 - handed to the job's future, or logged for an event
            if len(batch) == 1:
                self._fail(ledger, batch[0], error)
                return
            # One of the jobs is at fault: halve, so that the others are not lost with it, nor wait for a commit each.
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                self._commit(ledger, half)
        else:
            self._done(batch, results)

    def _attempt(self, ledger: Ledger, batch: list[Work]) -> list[tuple[Job, Any]]:
        with database.transaction(ledger.connection):
            events = [work for work in batch if isinstance(work, Append) and isinstance(work.draft, Draft)]
            if events:
                seqs = ledger.append([work.draft for work in events if isinstance(work.draft, Draft)])
                for work, seq in zip(events, seqs, strict=True):
                    work.outcome = seq
            readings = [work for work in batch if isinstance(work, Append) and isinstance(work.draft, ReadingDraft)]
            if readings:
                taken = ledger.append_readings([w.draft for w in readings if isinstance(w.draft, ReadingDraft)])
                for work, new in zip(readings, taken, strict=True):
                    work.outcome = 0 if new else None
            return [(job, job.run(ledger)) for job in batch if isinstance(job, Job)]

    def _hold(self, ledger: Ledger, batch: list[Work], error: EdgeError) -> None:
        """The disk is full or locked: keep the events unacknowledged and try again until there is room.

        Other jobs fail at once, because their callers can try again; a device's message cannot be asked for
        twice, and fills the broker's window until it is acknowledged.
        """
        held: list[Work] = []
        for work in batch:
            if isinstance(work, Append) or work.held:
                held.append(work)
            else:
                self._fail(ledger, work, error)
        if not held:
            return
        log.error("events_held", events=len(held), reason=str(error), hint=error.hint)
        self._refusing(str(error))
        while not self._stopping.wait(RETRY_DELAY_S):
            try:
                results = self._attempt(ledger, held)
            except (LedgerFull, LedgerBusy):
                continue
            self._refusing(None)
            self._done(held, results)
            return

    def _done(self, batch: list[Work], results: list[tuple[Job, Any]]) -> None:
        for job, result in results:
            job.future.set_result(result)
        self._committed([work for work in batch if isinstance(work, Append)])

    def _fail(self, ledger: Ledger, work: Work, error: Exception) -> None:
        if isinstance(work, Job):
            work.future.set_exception(error)
            return
        # It would fail again, and hold a place in the broker's window: with all places held, the gateway is deaf.
        log.error("event_not_committed", device=work.draft.device, draft=repr(work.draft)[:500], reason=str(error))
        if (instead := self.refuse(work, error)) is not None:
            self._commit(ledger, [instead])


@dataclass(frozen=True, slots=True)
class PatientWrites:
    """A `Write` that tries again while the disk is full."""

    submit: Submit

    async def __call__(self, run: Callable[[Ledger], T]) -> T:
        """Write, and wait for the commit."""
        while True:
            written = asyncio.wrap_future(self.submit(run))
            try:
                return await asyncio.shield(written)
            except asyncio.CancelledError:
                # The writer will commit it whatever we do; the next contact must find it done.
                await asyncio.wait([written])
                raise
            except (LedgerFull, LedgerBusy) as error:
                log.warning("write_waits_for_ledger", reason=str(error))
                await asyncio.sleep(RETRY_DELAY_S)

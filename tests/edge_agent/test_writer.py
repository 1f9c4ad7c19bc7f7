"""The one writer: commits together, fails alone, holds events while the disk is full, and always ends."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.errors import LedgerBusy, LedgerFull, LedgerMissing, OutOfDomain
from edge_agent.ledger import audit, database
from edge_agent.ledger.clock import Clock
from edge_agent.ledger.drafts import Draft, ReadingDraft, draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from edge_agent.ledger.writer import BATCH_JOBS_MAX, QUEUE_JOBS_MAX, Append, Job, LedgerWriter
from wire_protocol.entries import QUANTITY_MAX
from wire_protocol.stock import BALANCE_MAX

WAIT_S = 60


class Bench:
    """A writer on a ledger file, with what it told."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path, self.clock = path, clock
        self.told = threading.Condition()
        self.committed: list[Append] = []
        self.batches: list[int] = []
        self.refusals: list[str | None] = []
        self.ledger: Ledger | None = None

    @contextmanager
    def open(self) -> Iterator[Ledger]:
        """The ledger, as the writer's thread opens it."""
        with Ledger.open(self.path, self.clock) as self.ledger:
            yield self.ledger

    def writer(self) -> LedgerWriter:
        """A writer that tells us."""
        return LedgerWriter(self.open, committed=self._note, refusing=self._refuse)

    def _note(self, appended: list[Append]) -> None:
        with self.told:
            self.committed += appended
            self.batches.append(len(appended))
            self.told.notify_all()

    def _refuse(self, reason: str | None) -> None:
        with self.told:
            self.refusals.append(reason)
            self.told.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for what the writer tells."""
        with self.told:
            assert self.told.wait_for(condition, WAIT_S)

    def pages(self, more: int) -> None:
        """Let the file grow by so many pages and no more: a full disk, as SQLite sees it."""
        assert self.ledger is not None
        now = self.ledger.connection.execute("PRAGMA page_count").fetchone()[0]
        self.ledger.connection.execute(f"PRAGMA max_page_count = {now + more}")


@pytest.fixture
def bench(path: Path, clock: Clock) -> Bench:
    """A new ledger to write to."""
    with Ledger.create(path, "gw-1", clock):
        pass
    return Bench(path, clock)


def event(number: int) -> Draft:
    """A device's event."""
    return draft("receive", "tea", 1, destination="A-01", device="till-1", event=f"e-{number}", reference="x" * 60)


def test_what_waits_is_committed_together_and_in_order(bench: Bench) -> None:
    """Group commit: one trip to the disk for all that gathered meanwhile."""
    begun, gate = threading.Event(), threading.Event()

    def hold(_: Ledger) -> None:
        begun.set()
        gate.wait(WAIT_S)

    with bench.writer() as writer:
        writer.submit(hold)
        assert begun.wait(WAIT_S)
        for number in range(300):
            writer.append(event(number))
        writer.append(event(7))
        writer.append(ReadingDraft("probe", "r-1", {"t_c": 1.0}))
        gate.set()
        bench.wait(lambda: len(bench.committed) == 302)
    assert [append.outcome for append in bench.committed[:300]] == list(range(1, 301))
    assert (bench.committed[300].outcome, bench.committed[301].outcome) == (None, 0)
    assert len([size for size in bench.batches if size]) == 1


OTHER_USES = (
    {"quantity": 2},
    {"sku": "nut"},
    {"destination": "A-02"},
    {"lot": "L1"},
    {"serial": "S1"},
    {"actor": "ann"},
    {"reference": None},
    {"source": "@customer"},
)


def test_an_id_that_was_used_for_something_else_is_refused(bench: Bench) -> None:
    """It was answered as a repetition, and visible nowhere; also within one commit, and beside what is good."""
    refused: list[tuple[str | None, str]] = []

    def refuse(append: Append, error: Exception) -> Job:
        refused.append((append.draft.event, str(error)))
        return Job(lambda ledger: ledger.connection.execute(statement("count_up"), ("refused", 1)), held=True)

    gate = threading.Event()
    with bench.writer() as writer:
        writer.refuse = refuse
        writer.submit(lambda _: gate.wait(WAIT_S))
        writer.append(event(1))
        for use in OTHER_USES:
            writer.append(replace(event(1), **use))
        writer.append(replace(event(1), device_at_ms=5))  # a device may have set its clock meanwhile
        writer.append(ReadingDraft("probe", "r-1", {"t_c": 1.0}))
        writer.append(ReadingDraft("probe", "r-1", {"t_c": 1.5}))
        writer.append(ReadingDraft("probe", "r-1", {"t_c": 1}, device_at_ms=5))
        writer.append(event(2))
        gate.set()
        bench.wait(lambda: len(bench.committed) == 5)
        writer.append(replace(event(1), quantity=3))
        writer.submit(lambda _: None).result(WAIT_S)
    assert [event for event, _ in refused] == ["e-1"] * len(OTHER_USES) + ["r-1", "e-1"]
    assert all(reason.startswith("id-used: ") for _, reason in refused)
    assert "receive of 1 × tea" in refused[0][1]
    with Ledger.open(bench.path, bench.clock) as ledger:
        assert ledger.tail().seq == 2
        assert ledger.connection.execute("SELECT value FROM counter").fetchone()[0] == len(refused)


def test_an_id_whose_first_use_was_not_committed_is_free(bench: Bench) -> None:
    """The first of two events of one id cannot be committed: the second is no other use of it."""
    gate = threading.Event()
    with bench.writer() as writer:
        assert writer.submit(lambda ledger: _near_the_end(ledger, "A-01")).result(WAIT_S) is None
        writer.submit(lambda _: gate.wait(WAIT_S))
        writer.append(_beyond(1))
        writer.append(replace(_beyond(1), quantity=2))
        gate.set()
        bench.wait(lambda: len(bench.committed) == 1)
    assert (bench.committed[0].outcome, bench.committed[0].used) == (2, None)


def test_a_failing_job_fails_alone(bench: Bench) -> None:
    """One bad job must not take the events that gathered beside it."""
    gate = threading.Event()

    def fail(_: Ledger) -> None:
        raise ZeroDivisionError

    with bench.writer() as writer:
        writer.submit(lambda _: gate.wait(WAIT_S))
        writer.append(event(1))
        failing: Future[None] = writer.submit(fail)
        writer.append(event(2))
        good = writer.submit(lambda ledger: ledger.tail().seq)
        gate.set()
        assert good.result(WAIT_S) == 2
        assert isinstance(failing.exception(WAIT_S), ZeroDivisionError)
    with Ledger.open(bench.path, bench.clock) as ledger:
        assert (ledger.tail().seq, audit.verify(ledger.connection).findings) == (2, [])


def test_a_job_that_nobody_waits_for_any_more_does_not_hurt_the_writer(bench: Bench) -> None:
    """The event loop cancels the future of a caller that stopped waiting; the writer must survive that."""
    gate = threading.Event()
    with bench.writer() as writer:
        writer.submit(lambda _: gate.wait(WAIT_S))
        abandoned = writer.submit(lambda ledger: ledger.tail())
        assert abandoned.cancel()
        gate.set()
        assert writer.submit(lambda ledger: ledger.tail().seq).result(WAIT_S) == 0


def test_a_full_disk_holds_events_and_lets_them_go_when_there_is_room(bench: Bench) -> None:
    """Movements are never shed: no receipt while there is no room, and every one after."""
    with bench.writer() as writer:
        writer.submit(lambda _: bench.pages(2)).result(WAIT_S)
        for number in range(400):
            writer.append(event(number))
        bench.wait(lambda: bool(bench.refusals))
        assert "full" in str(bench.refusals[0])
        bench.pages(10_000)
        bench.wait(lambda: len(bench.committed) == 400)
        assert bench.refusals[-1] is None
    with Ledger.open(bench.path, bench.clock) as ledger:
        assert (ledger.tail().seq, audit.verify(ledger.connection).findings) == (400, [])


def test_a_job_learns_that_the_disk_is_full(bench: Bench) -> None:
    """Anyone who waits for a job can try again; only events cannot be asked for twice."""

    def fill(ledger: Ledger) -> None:
        ledger.append([event(number) for number in range(1_000)])

    with bench.writer() as writer:
        writer.submit(lambda _: bench.pages(2)).result(WAIT_S)
        with pytest.raises(LedgerFull):
            writer.submit(fill).result(WAIT_S)


def test_what_is_owed_to_a_device_is_held_too(bench: Bench) -> None:
    """A dead letter that failed would leave its message in flight forever; enough of them and the gateway is deaf."""

    def keep(ledger: Ledger) -> int:
        ledger.append([event(number) for number in range(400)])
        return 400

    with bench.writer() as writer:
        writer.submit(lambda _: bench.pages(2)).result(WAIT_S)
        owed = writer.settle(keep)
        bench.wait(lambda: bool(bench.refusals))
        assert not owed.done()
        bench.pages(10_000)
        assert owed.result(WAIT_S) == 400


@pytest.mark.bound("edge_agent.ledger.writer.QUEUE_JOBS_MAX")
@pytest.mark.bound("edge_agent.ledger.writer.BATCH_JOBS_MAX")
def test_submitting_never_waits_for_room(bench: Bench) -> None:
    """The event loop submits; while it waited, systemd's watchdog would starve and kill the agent."""
    gate = threading.Event()
    with bench.writer() as writer:
        writer.submit(lambda _: gate.wait(WAIT_S))
        told = [writer.submit(lambda ledger: ledger.tail().seq) for _ in range(QUEUE_JOBS_MAX + BATCH_JOBS_MAX + 10)]
        assert isinstance(told[-1].exception(WAIT_S), LedgerBusy)
        gate.set()
        assert told[0].result(WAIT_S) == 0


def test_stopping_with_a_full_disk_and_a_full_queue_ends(bench: Bench) -> None:
    """SIGTERM on a gateway whose disk is full: the device side waits for the writer, the writer for room."""
    writer = bench.writer()
    with writer:
        writer.submit(lambda _: bench.pages(2)).result(WAIT_S)

        def feed() -> None:
            for number in range(QUEUE_JOBS_MAX + 3_000):
                writer.append(event(number))

        feeder = threading.Thread(target=feed)
        feeder.start()
        bench.wait(lambda: bool(bench.refusals))
        writer.close_intake()
        feeder.join(WAIT_S)
        assert not feeder.is_alive()
    assert writer.ended.done()
    with closing(database.open_reader(bench.path)) as reader:
        assert audit.verify(reader).findings == []


def test_the_agent_learns_when_the_writer_dies(bench: Bench) -> None:
    """An agent without its writer would take events and never commit them."""

    def die(_: list[Append]) -> None:
        raise ZeroDivisionError

    with LedgerWriter(bench.open, committed=die) as writer:
        writer.append(event(1))
        assert isinstance(writer.ended.exception(WAIT_S), ZeroDivisionError)


def test_a_ledger_that_cannot_be_opened_is_told_at_once(tmp_path: Path, clock: Clock) -> None:
    """The error must come out of `with`, not out of a thread."""
    with pytest.raises(LedgerMissing), LedgerWriter(lambda: Ledger.open(tmp_path / "none", clock), committed=print):
        pass


def test_an_event_that_can_never_be_committed_is_refused_and_the_others_are_not(bench: Bench) -> None:
    """Each held a place in the broker's window for good: after two thousand the gateway was deaf."""
    gate = threading.Event()
    refused: list[tuple[str | None, str]] = []

    def refuse(append: Append, error: Exception) -> Job:
        refused.append((append.draft.event, type(error).__name__))
        return Job(lambda ledger: ledger.connection.execute(statement("count_up"), ("refused", 1)), held=True)

    with bench.writer() as writer:
        writer.refuse = refuse
        assert writer.submit(lambda ledger: _near_the_end(ledger, "A-01")).result(WAIT_S) is None
        writer.submit(lambda _: gate.wait(WAIT_S))
        for number in range(100):
            writer.append(event(number) if number % 10 else _beyond(number))
        gate.set()
        bench.wait(lambda: len(bench.committed) == 90)
        writer.submit(lambda _: None).result(WAIT_S)
    assert sorted(refused) == sorted((f"big-{number}", "OutOfDomain") for number in range(0, 100, 10))
    with Ledger.open(bench.path, bench.clock) as ledger:
        assert ledger.connection.execute("SELECT on_hand FROM balance WHERE location = 'A-01'").fetchone()[0] > 0
        for number in range(2):
            with pytest.raises(OutOfDomain, match="tea at A-01"), database.transaction(ledger.connection):
                ledger.append([_beyond(1_000 + number)])
        with database.transaction(ledger.connection):
            ledger.append([draft("pick", "tea", QUANTITY_MAX, source="A-01")])  # the way back is open


def _near_the_end(ledger: Ledger, location: str) -> None:
    """A cell at the end of its domain, as years of the largest receipts would leave it."""
    ledger.append([draft("receive", "tea", 1, destination=location)])
    ledger.connection.execute(
        "UPDATE balance SET on_hand = ?, moved = ? WHERE location = ?", (BALANCE_MAX - 200, BALANCE_MAX - 200, location)
    )


def _beyond(number: int) -> Draft:
    """An event that no cell near its end takes."""
    return draft("receive", "tea", QUANTITY_MAX, destination="A-01", device="till-1", event=f"big-{number}")

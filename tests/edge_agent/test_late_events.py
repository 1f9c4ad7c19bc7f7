"""What a device delivers late takes its place by when it happened, and nothing that was counted meanwhile changes."""

from itertools import takewhile
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.devices.dead_letters import redraft
from edge_agent.ledger import audit, database, queries
from edge_agent.ledger.clock import instant
from edge_agent.ledger.drafts import Draft, ReadingDraft, draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.outbox import Outbox
from testbed.hand_clock import HandClock
from wire_protocol import topics
from wire_protocol.messages import DeviceEvent, DeviceReading
from wire_protocol.names import ulid
from wire_protocol.topics import Channel

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


def append(ledger: Ledger, *drafts: Draft) -> list[int | None]:
    """Append in one transaction."""
    with database.transaction(ledger.connection):
        return ledger.append(drafts)


def scanned(clock: HandClock, event: str, kind: str = "pick", quantity: int = 2, **fields: object) -> Draft:
    """What the draft of a scan is that arrives now."""
    ends = {"source": "A-01"} if kind == "pick" else {"location": "A-01"}
    message = DeviceEvent.model_validate(
        {"id": event, "kind": kind, "sku": "tea", "quantity": quantity, **ends, **fields}
    )
    made = redraft(topics.device("till-1", Channel.DEVICE_EVENT), message.encode(), instant(clock))
    assert isinstance(made, Draft)
    return made


def counted(quantity: int) -> Draft:
    """A technician counts."""
    return draft("count", "tea", quantity, location="A-01")


def on_hand(ledger: Ledger) -> int:
    """What is on the shelf, in a ledger that is whole."""
    assert audit.verify(ledger.connection).findings == []
    return queries.stock(ledger.connection, zero=True)[0].on_hand


def boot_again(clock: HandClock, down_ms: int) -> None:
    """The gateway's power is cut for a while."""
    clock.boot = ulid(clock.at_ms, bytes(10))
    clock.at_ms += down_ms
    clock.up_ms = 0


@pytest.mark.parametrize("age_ms", [1_500, 20_000, 3 * HOUR_MS, 29 * DAY_MS])
def test_a_pick_of_before_a_count_changes_the_variance_and_not_the_stock(
    ledger: Ledger, clock: HandClock, age_ms: int
) -> None:
    """The scanner was out of range: what it says was on the shelf when it was counted was not there any more."""
    append(ledger, draft("receive", "tea", 7, destination="A-01"))
    clock.turn(age_ms)
    append(ledger, counted(5))
    assert ledger.connection.execute("SELECT max(variance) FROM movement").fetchone() == (-2,)
    clock.turn(500)
    assert append(ledger, scanned(clock, "e-1", age_ms=age_ms)) == [3]
    assert on_hand(ledger) == 5
    assert ledger.connection.execute("SELECT max(variance) FROM movement").fetchone() == (0,)
    row = next(row for row in queries.history(ledger.connection) if row.kind == "pick")
    assert (row.at_ms, row.late_ms, row.time_doubt) == (clock.at_ms - age_ms, age_ms, None)
    append(ledger, counted(9), scanned(clock, "e-2", age_ms=20))
    assert on_hand(ledger) == 7


def test_a_late_count_of_a_device_does_not_undo_what_was_picked_since(ledger: Ledger, clock: HandClock) -> None:
    """The count is absolute at its time; three were picked after it."""
    append(ledger, draft("receive", "tea", 10, destination="A-01"))
    clock.turn(2 * HOUR_MS)
    append(ledger, draft("pick", "tea", 3, source="A-01"))
    clock.turn(HOUR_MS)
    append(ledger, scanned(clock, "e-1", kind="count", quantity=8, age_ms=2 * HOUR_MS))
    assert on_hand(ledger) == 5


@pytest.mark.parametrize("by_ms", [-26 * HOUR_MS, -90 * MINUTE_MS, 90 * MINUTE_MS, 400 * DAY_MS])
@pytest.mark.parametrize("before", [True, False])
def test_the_place_does_not_depend_on_the_gateways_wall_clock(
    ledger: Ledger, clock: HandClock, by_ms: int, *, before: bool
) -> None:
    """Somebody sets the clock between the scan and its delivery: the monotonic clock of the boot decides."""
    append(ledger, draft("receive", "tea", 9, destination="A-01"))
    clock.turn(HOUR_MS)
    at_ms = clock.mono_ms() + (-1 if before else 1) * 5 * MINUTE_MS
    append(ledger, counted(5))
    clock.turn(10 * MINUTE_MS)
    clock.at_ms += by_ms
    append(ledger, draft("receive", "tea", 1, destination="A-01"))
    clock.turn(10 * MINUTE_MS)
    append(ledger, scanned(clock, "e-1", age_ms=clock.mono_ms() - at_ms))
    assert on_hand(ledger) == (6 if before else 4)


def test_a_scan_of_before_the_gateways_boot_is_placed_by_the_time(ledger: Ledger, clock: HandClock) -> None:
    """The gateway itself was without power in between."""
    append(ledger, draft("receive", "tea", 9, destination="A-01"))
    clock.turn(HOUR_MS)
    append(ledger, counted(5))
    boot_again(clock, 3 * HOUR_MS)
    append(ledger, draft("receive", "tea", 1, destination="A-01"))
    clock.turn(MINUTE_MS)
    append(ledger, scanned(clock, "e-1", age_ms=3 * HOUR_MS + 30 * MINUTE_MS))
    assert on_hand(ledger) == 6
    append(ledger, scanned(clock, "e-2", age_ms=2 * HOUR_MS))
    assert on_hand(ledger) == 4


def test_a_scan_of_before_the_boot_whose_time_came_later_is_placed_by_true_time(
    ledger: Ledger, clock: HandClock
) -> None:
    """Both boots began in 1970; an acknowledgement in each has told the time."""
    clock.at_ms = 0
    true_ms = 1_795_000_000_000
    with database.transaction(ledger.connection):
        Outbox(ledger).learn_time(true_ms - clock.mono_ms())
    clock.turn(HOUR_MS)
    append(ledger, counted(5))
    boot_again(clock, 0)
    ledger.zero_ms = None
    clock.at_ms = 0
    with database.transaction(ledger.connection):
        Outbox(ledger).learn_time(true_ms + 3 * HOUR_MS)
    clock.turn(MINUTE_MS)
    append(ledger, scanned(clock, "e-1", age_ms=HOUR_MS), scanned(clock, "e-2", quantity=1, age_ms=170 * MINUTE_MS))
    assert on_hand(ledger) == 3
    append(ledger, scanned(clock, "e-3", quantity=1, age_ms=HOUR_MS + 151 * MINUTE_MS))
    assert on_hand(ledger) == 3


def test_events_of_one_device_keep_their_order_and_what_is_booked_next_is_later(
    ledger: Ledger, clock: HandClock
) -> None:
    """A burst after hours out of range: receive, count, pick; then the technician's own entry."""
    append(ledger, counted(100))
    clock.turn(3 * HOUR_MS)
    burst = [
        scanned(clock, f"e-{number}", kind=kind, quantity=quantity, age_ms=2 * HOUR_MS - number)
        for number, (kind, quantity) in enumerate([("pick", 1), ("count", 50), ("pick", 2), ("pick", 3)])
    ]
    append(ledger, *burst)
    assert on_hand(ledger) == 45
    append(ledger, counted(40))
    assert on_hand(ledger) == 40
    append(ledger, scanned(clock, "e-9", age_ms=2 * HOUR_MS))
    append(ledger, draft("pick", "tea", 4, source="A-01"))
    assert on_hand(ledger) == 36
    assert ledger.latest() == max(row[0] for row in ledger.connection.execute("SELECT hlc FROM entry"))


def test_after_a_late_entry_the_clock_goes_on_from_the_latest(ledger: Ledger, clock: HandClock) -> None:
    """The wall clock steps back and the last entry is a late one: the next is later than all that was booked."""
    append(ledger, draft("receive", "tea", 9, destination="A-01"))
    clock.turn(HOUR_MS)
    append(ledger, counted(5))
    clock.turn(MINUTE_MS)
    append(ledger, scanned(clock, "e-1", age_ms=30 * MINUTE_MS))
    clock.at_ms -= 2 * HOUR_MS
    append(ledger, draft("pick", "tea", 1, source="A-01"))
    assert on_hand(ledger) == 4


@pytest.mark.parametrize(
    ("fields", "doubt"),
    [
        ({"age_ms": 31 * DAY_MS}, "too-old"),
        ({"age_ms": (1 << 47) - 1}, "too-old"),
        ({"at_ms": 5}, "unproven"),
        ({"at_ms": 1_763_700_000_000 - 2 * HOUR_MS}, "unproven"),
        ({"at_ms": 1_763_700_000_000 + 400 * DAY_MS}, "unproven"),
        ({"at_ms": 1_763_700_000_000 + HOUR_MS - MINUTE_MS}, None),
        ({}, None),
    ],
)
def test_what_is_not_believed_is_placed_at_its_arrival_and_flagged(
    ledger: Ledger, clock: HandClock, fields: dict[str, int], doubt: str | None
) -> None:
    """A wrong clock must not move goods to where they were not; a device without a clock is none the worse."""
    clock.turn(HOUR_MS)
    append(ledger, counted(5))
    clock.turn(MINUTE_MS)
    append(ledger, scanned(clock, "e-1", "pick", 2, **fields))
    assert on_hand(ledger) == 3
    row = queries.history(ledger.connection)[0]
    assert (row.late_ms, row.time_doubt, row.at_ms) == (None, doubt, clock.at_ms)
    facts = queries.status(ledger.connection, Path("absent"))
    assert (facts["device_times_doubted"], facts["dropped"]) == (int(doubt is not None), {})


def test_what_waited_for_the_disk_is_placed_at_its_arrival(ledger: Ledger, clock: HandClock) -> None:
    """The disk was full for two hours; a technician counts before the writer tries again."""
    append(ledger, draft("receive", "tea", 9, destination="A-01"))
    clock.turn(HOUR_MS)
    held = [scanned(clock, "e-1"), scanned(clock, "e-2", age_ms=MINUTE_MS)]
    clock.turn(2 * HOUR_MS)
    append(ledger, counted(5))
    clock.turn(500)
    append(ledger, *held)
    assert on_hand(ledger) == 5
    late = [row.late_ms for row in queries.history(ledger.connection) if row.kind == "pick"]
    assert late == [2 * HOUR_MS, 2 * HOUR_MS + MINUTE_MS]  # recorded right after the count


def test_what_waits_in_the_writers_queue_keeps_its_place_and_its_time(ledger: Ledger, clock: HandClock) -> None:
    """Events gather for ten seconds; while nothing else is recorded they are as on time as when they arrived."""
    arrived_ms = []
    queue = []
    for number in range(5):
        clock.turn(2_000)
        arrived_ms.append(clock.at_ms)
        queue.append(scanned(clock, f"e-{number}"))
    clock.turn(3_000)
    append(ledger, *queue[:2])
    clock.turn(3_000)
    append(ledger, *queue[2:])
    rows = sorted(queries.history(ledger.connection), key=lambda row: row.seq)
    assert [(row.late_ms, row.at_ms) for row in rows] == [(None, at_ms) for at_ms in arrived_ms]


def test_a_late_event_finds_its_place_among_those_of_its_own_commit(ledger: Ledger, clock: HandClock) -> None:
    """Of three events that are committed at once, the last happened between the others: a count in the middle."""
    early = scanned(clock, "e-1", "count", 9, location="A-01")
    clock.turn(10_000)
    count = scanned(clock, "e-2", "count", 5, location="A-01")
    clock.turn(10_000)
    append(ledger, early, count, scanned(clock, "e-3", age_ms=15_000))
    assert on_hand(ledger) == 5
    assert {row.seq: row.variance for row in queries.history(ledger.connection)} == {1: 9, 2: -2, 3: None}


def test_a_late_reading_has_its_time(ledger: Ledger, clock: HandClock) -> None:
    """A probe that was out of range must not draw its morning at noon."""
    message = DeviceReading(id="r-1", values={"temperature_c": 4.5}, age_ms=5 * HOUR_MS)
    made = redraft(topics.device("probe", Channel.DEVICE_READING), message.encode(), instant(clock))
    assert isinstance(made, ReadingDraft)
    with database.transaction(ledger.connection):
        assert ledger.append_readings([made]) == [True]
    assert queries.readings(ledger.connection)[0].at_ms == clock.at_ms - 5 * HOUR_MS


happenings = st.lists(
    st.tuples(
        st.sampled_from(["count", "pick", "receive"]),
        st.integers(0, 9),
        st.integers(2_000, 40 * MINUTE_MS),  # until the next
        st.sampled_from(
            [None, None, 0, 1, 2, 4, 9]
        ),  # how many happenings later it is delivered; None: not by a device
        st.sampled_from([0, 0, 0, -3 * HOUR_MS, 7 * HOUR_MS, 500 * DAY_MS]),  # what the wall clock is set by
        st.booleans(),  # whether the writer commits what has arrived
    ),
    min_size=1,
    max_size=14,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(happened=happenings)
def test_the_stock_is_that_of_the_order_in_which_things_happened(
    tmp_path_factory: pytest.TempPathFactory, happened: list[tuple[str, int, int, int | None, int, bool]]
) -> None:
    """Whatever is delivered and committed when, in one boot and with any wall clock: as if all had been booked at once.

    Where somebody sets the clock back, there is no reading left between two entries: there a device that sends in
    order is needed.
    """
    clock, stock, waiting = HandClock(), 0, []
    arrived: list[Draft] = []
    in_order = any(set_by_ms < 0 for *_, set_by_ms, _ in happened)
    with Ledger.create(tmp_path_factory.mktemp("late") / "ledger.db", "gw-1", clock) as ledger:
        for number, (kind, amount, next_ms, delivered_after, set_by_ms, commits) in enumerate(happened):
            ends = {"count": {"location": "A-01"}, "pick": {"source": "A-01"}, "receive": {"destination": "A-01"}}[kind]
            quantity = amount if kind == "count" else amount + 1
            stock = quantity if kind == "count" else stock + quantity * (1 if kind == "receive" else -1)
            if delivered_after is None:
                append(ledger, draft(kind, "tea", quantity, **ends))  # type: ignore[arg-type]  # one of three kinds
            else:
                fields = {"id": f"e-{number}", "kind": kind, "sku": "tea", "quantity": quantity, **ends}
                waiting.append((number + delivered_after, clock.mono_ms(), fields))
            clock.turn(next_ms)
            clock.at_ms = max(0, clock.at_ms + set_by_ms)
            waiting = _deliver(arrived, clock, waiting, number, in_order=in_order)
            if commits or in_order:
                append(ledger, *arrived)
                arrived.clear()
        _deliver(arrived, clock, waiting, len(happened) + 10, in_order=in_order)
        append(ledger, *arrived)
        assert on_hand(ledger) == stock
        audit.rebuild(ledger)
        assert on_hand(ledger) == stock


def _deliver(
    arrived: list[Draft],
    clock: HandClock,
    waiting: list[tuple[int, int, dict[str, object]]],
    now: int,
    *,
    in_order: bool,
) -> list[tuple[int, int, dict[str, object]]]:
    """Deliver what is due; returns the rest."""
    if in_order:
        due = list(takewhile(lambda each: each[0] <= now, waiting))
    else:
        due = [each for each in waiting if each[0] <= now]
        Random(now).shuffle(due)
    for _, mono_ms, fields in due:
        message = DeviceEvent.model_validate(fields | {"age_ms": clock.mono_ms() - mono_ms})
        made = redraft(topics.device("till-1", Channel.DEVICE_EVENT), message.encode(), instant(clock))
        assert isinstance(made, Draft)
        arrived.append(made)
    return [each for each in waiting if each not in due]

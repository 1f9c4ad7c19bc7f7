"""The outbox: sealed once, kept until acknowledged and a while longer, never within nobody's bound."""

import json

import pytest

from edge_agent.errors import LedgerCorrupt
from edge_agent.ledger import audit, database, outbox, queries, streams
from edge_agent.ledger.drafts import ReadingDraft, draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.outbox import Outbox
from edge_agent.ledger.sql import statement
from edge_agent.provisioning import retention
from edge_agent.settings import EdgeSettings
from testbed.hand_clock import HandClock
from wire_protocol import frames, names
from wire_protocol.messages import Rejected
from wire_protocol.stock import Cell, imbalance
from wire_protocol.topics import Stream


def fill(ledger: Ledger, entries: int) -> None:
    """Append movements."""
    with database.transaction(ledger.connection):
        ledger.append([draft("receive", f"sku-{n % 7}", 1 + n, destination="A-01") for n in range(entries)])


def read(ledger: Ledger, readings: int, *, first: int = 0) -> None:
    """Append sensor readings."""
    with database.transaction(ledger.connection):
        ledger.append_readings(
            [ReadingDraft("probe", f"r-{n}", {"temperature_c": float(n)}) for n in range(first, first + readings)]
        )


def seal(ledger: Ledger, stream: Stream = "ledger", entries_max: int = 100, contact_mono_ms: int | None = None) -> int:
    """Seal one frame; returns how many entries it has."""
    with database.transaction(ledger.connection):
        sealed = Outbox(ledger).seal(stream, entries_max, contact_mono_ms=contact_mono_ms)
    return sealed.entries if sealed else 0


def frame(ledger: Ledger, number: int, stream: Stream = "ledger") -> frames.Frame:
    """A sealed frame, decoded."""
    encoded = outbox.body(ledger.connection, stream, number)
    assert encoded is not None
    return frames.decode(encoded)


def test_frames_are_contiguous_and_chained(ledger: Ledger) -> None:
    """The cloud takes frame N+1 after frame N or not at all."""
    fill(ledger, 250)
    assert [seal(ledger), seal(ledger), seal(ledger), seal(ledger)] == [100, 100, 50, 0]
    first, second, third = (frame(ledger, number) for number in (1, 2, 3))
    assert first.header.prev == frames.genesis("gw-1", ledger.epoch, "ledger")
    assert (second.header.prev, third.header.prev) == (first.digest, second.digest)
    assert [made.header.first_seq for made in (first, second, third)] == [1, 101, 201]
    assert audit.verify(ledger.connection).frames == 3
    assert audit.verify(ledger.connection).findings == []


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE frame SET body = substr(body, 1, 20) WHERE frame = 1",
        "UPDATE frame SET digest = 'x' WHERE frame = 2",
        "UPDATE frame SET first_seq = 7 WHERE frame = 2",
        "DELETE FROM frame WHERE frame = 3",
        "UPDATE frame SET body = (SELECT body FROM frame WHERE frame = 2) WHERE frame = 3",
    ],
)
def test_verify_finds_a_changed_frame(ledger: Ledger, tamper: str) -> None:
    """A frame that was changed after it was sealed must not be sent again as if nothing had happened."""
    fill(ledger, 250)
    while seal(ledger):
        pass
    ledger.connection.execute(tamper)
    assert any("frame" in finding for finding in audit.verify(ledger.connection).findings)


@pytest.mark.bound("edge.frame_keep_s")
def test_acknowledged_frames_are_kept_for_the_retention_and_then_forgotten(ledger: Ledger, clock: HandClock) -> None:
    """A cloud that falls back to a stale replica needs them again; a gateway's disk is small."""
    fill(ledger, 300)
    while seal(ledger):
        pass
    with database.transaction(ledger.connection):
        Outbox(ledger).acked("ledger", 2)
    clock.turn(10_000)
    with database.transaction(ledger.connection):
        assert Outbox(ledger).trim(keep_s=60, keep_bytes_max=1 << 20) == 0
    clock.turn(60_000)
    with database.transaction(ledger.connection):
        assert Outbox(ledger).trim(keep_s=60, keep_bytes_max=1 << 20) == 2
    assert outbox.body(ledger.connection, "ledger", 2) is None
    assert outbox.body(ledger.connection, "ledger", 3) is not None
    assert audit.verify(ledger.connection).findings == []


def test_a_clock_that_was_set_back_leaves_no_hole_in_what_is_kept(ledger: Ledger, clock: HandClock) -> None:
    """Newer frames then look older than the ones before them; the simulator found the hole that this left."""
    fill(ledger, 400)
    while seal(ledger):
        pass
    for number, step in enumerate([0, -7_200_000, 0, 0], start=1):
        clock.turn(step)
        with database.transaction(ledger.connection):
            Outbox(ledger).acked("ledger", number)
    with database.transaction(ledger.connection):
        assert Outbox(ledger).trim(keep_s=-3_600, keep_bytes_max=1 << 20) == 0
        assert Outbox(ledger).trim(keep_s=-10_800, keep_bytes_max=1 << 20) == 4
    assert audit.verify(ledger.connection).findings == []


@pytest.mark.bound("edge.frame_keep_bytes_max")
def test_the_frame_budget_drops_the_oldest_acknowledged_only(ledger: Ledger) -> None:
    """What the cloud does not have yet is never dropped, whatever the budget."""
    fill(ledger, 300)
    while seal(ledger):
        pass
    with database.transaction(ledger.connection):
        Outbox(ledger).acked("ledger", 2)
        assert Outbox(ledger).trim(keep_s=10**6, keep_bytes_max=0) == 2
    assert outbox.body(ledger.connection, "ledger", 3) is not None


def test_after_a_step_back_frames_count_as_unacknowledged_again(ledger: Ledger, clock: HandClock) -> None:
    """Otherwise retention would drop what the fallen-back cloud still lacks."""
    fill(ledger, 300)
    while seal(ledger):
        pass
    with database.transaction(ledger.connection):
        Outbox(ledger).acked("ledger", 3)
        Outbox(ledger).stepped_back("ledger", 1)
    clock.turn(10**9)
    with database.transaction(ledger.connection):
        assert Outbox(ledger).trim(keep_s=1, keep_bytes_max=0) == 1
    at = streams.position(ledger.connection, "ledger")
    assert (at.acked_frame, at.acked_seq) == (1, 100)


def test_an_acknowledgement_of_a_frame_nobody_sealed_is_corruption(ledger: Ledger) -> None:
    """The sender catches it as a fork first; the outbox must not book it in any case."""
    with pytest.raises(LedgerCorrupt), database.transaction(ledger.connection):
        Outbox(ledger).acked("ledger", 1)


def test_the_true_time_of_a_boot_goes_into_the_frames_sealed_after_it_is_known(ledger: Ledger) -> None:
    """Entries recorded under a wrong clock get their true time retroactively."""
    fill(ledger, 2)
    assert seal(ledger, entries_max=1) == 1
    with database.transaction(ledger.connection):
        Outbox(ledger).learn_time(1_763_600_000_000)
    assert seal(ledger) == 1
    assert frame(ledger, 1).header.boots == {}
    assert frame(ledger, 2).header.boots == {HandClock.boot: 1_763_600_000_000}


def test_entries_from_before_the_contact_are_marked_as_replay(ledger: Ledger, clock: HandClock) -> None:
    """Dashboards must tell a drained backlog from what happens now."""
    fill(ledger, 1)
    clock.turn(1_000)
    contact_ms = clock.mono_ms()
    clock.at_ms -= 86_400_000  # somebody sets the wall clock back: what was before the contact is told by the other one
    seal(ledger, contact_mono_ms=contact_ms)
    fill(ledger, 1)
    seal(ledger, contact_mono_ms=contact_ms)
    assert [frame(ledger, number).header.replay for number in (1, 2)] == [True, False]


def test_verdicts_reach_the_technician(ledger: Ledger) -> None:
    """What the cloud could not use must be seen where it can be mended."""
    fill(ledger, 3)
    with database.transaction(ledger.connection):
        Outbox(ledger).verdicts("ledger", [Rejected(seq=2, reason="no such thing")])
    assert [row.verdict for row in queries.history(ledger.connection)] == [None, "no such thing", None]


def test_what_the_cloud_rejected_is_not_in_the_stock(ledger: Ledger) -> None:
    """Edge and cloud must show the same; a rebuild and an audit must agree with both."""
    with database.transaction(ledger.connection):
        ledger.append(
            [
                draft("receive", "tea", 10, destination="A-01"),
                draft("count", "tea", 7, location="A-01"),
                draft("receive", "tea", 5, destination="A-01"),
            ]
        )
    for seq, on_hand in ((2, 15), (3, 10)):
        with database.transaction(ledger.connection):
            Outbox(ledger).verdicts("ledger", [Rejected(seq=seq, reason="no")])
        assert queries.balances(ledger.connection)[Cell("A-01", "tea", "")] == on_hand
        assert imbalance(queries.balances(ledger.connection).items()) == {}
        assert audit.verify(ledger.connection).findings == []
    audit.rebuild(ledger)
    assert queries.balances(ledger.connection)[Cell("A-01", "tea", "")] == 10
    assert audit.verify(ledger.connection).findings == []


@pytest.mark.bound("edge.readings_max")
def test_the_ring_of_readings_is_thinned_then_dropped_and_counted(ledger: Ledger) -> None:
    """Weeks offline must keep an outline of the temperature, and never cost a movement."""
    read(ledger, 1_200)
    seal(ledger, "readings", 150)
    fill(ledger, 5)
    settings = EdgeSettings(readings_max=1_000)
    with database.transaction(ledger.connection):
        assert retention.upkeep(ledger, settings)["readings_dropped"] == 50
    kept = [
        json.loads(row[0])["values"]["temperature_c"]
        for row in ledger.connection.execute("SELECT body FROM reading ORDER BY id")
    ]
    assert len(kept) == 1_000
    assert kept[:3] == [151.0, 153.0, 155.0]
    read(ledger, 500, first=2_000)
    with database.transaction(ledger.connection):
        retention.upkeep(ledger, settings)
    assert ledger.connection.execute("SELECT value FROM counter WHERE name = 'readings_dropped'").fetchone() == (550,)
    assert ledger.tail().seq == 5
    assert seal(ledger, "readings", 500) == 500


@pytest.mark.bound("edge.dead_letters_max")
def test_dead_letters_are_bounded_and_counted(ledger: Ledger) -> None:
    """A misbehaving device must not fill the disk."""
    with database.transaction(ledger.connection):
        for number in range(130):
            ledger.connection.execute(statement("insert_dead_letter"), (number, "t", b"x", "no", "", 0))
        assert retention.upkeep(ledger, EdgeSettings(dead_letters_max=100))["dead_letters_dropped"] == 30
    assert ledger.connection.execute("SELECT min(at_ms) FROM dead_letter").fetchone() == (30,)


def test_a_device_that_is_wrong_without_end_pushes_out_its_own_dead_letters_only(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another's single bad scan is what the technician looks for."""
    monkeypatch.setattr(retention, "OF_TOPIC_MAX", 20)
    with database.transaction(ledger.connection):
        ledger.connection.execute(statement("insert_dead_letter"), (0, "quiet", b"x", "no", "", 0))
        for number in range(130):
            ledger.connection.execute(statement("insert_dead_letter"), (number, "noisy", b"x", "no", "", 0))
        assert retention.upkeep(ledger, EdgeSettings(dead_letters_max=100))["dead_letters_dropped"] == 110
    kept = ledger.connection.execute("SELECT topic, count(*) FROM dead_letter GROUP BY 1 ORDER BY 1").fetchall()
    assert kept == [("noisy", 20), ("quiet", 1)]


def test_a_frame_holds_no_more_boots_than_its_header(ledger: Ledger, clock: HandClock) -> None:
    """A gateway that reboots all day must not make a frame that can never be sealed."""
    for number in range(70):
        clock.boot = names.ulid(number, bytes(10))
        fill(ledger, 1)
        with database.transaction(ledger.connection):
            Outbox(ledger).learn_time(number)
    assert [seal(ledger), seal(ledger), seal(ledger)] == [frames.BOOTS_MAX, 6, 0]

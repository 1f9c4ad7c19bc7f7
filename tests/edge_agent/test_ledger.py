"""The ledger: entries once, derived tables by the oracle, whole after every interruption."""

import multiprocessing
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.desk.booking import book
from edge_agent.errors import BadInput, LedgerExists, LedgerForeign, LedgerFull, LedgerMissing
from edge_agent.ledger import audit, database, queries
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.drafts import Draft, ReadingDraft, draft
from edge_agent.ledger.ledger import Ledger
from testbed.hand_clock import HandClock
from tests.wire_protocol.strategies import ledger_entries
from wire_protocol.entries import ENTRY, Count, LedgerEntry, Movement
from wire_protocol.stock import EntryKey, imbalance, oracle


def append(ledger: Ledger, *drafts: Draft) -> list[int | None]:
    """Append in one transaction."""
    with database.transaction(ledger.connection):
        return ledger.append(drafts)


def receive(quantity: int = 1, **fields: str) -> Draft:
    """Goods come in at A-01."""
    return draft("receive", "tea", quantity, destination="A-01", **fields)


def as_draft(entry: LedgerEntry) -> Draft:
    """The draft that gives an entry, without its device."""
    stamp = {"hlc", "boot", "mono_ms", "late_ms", "time_doubt"}
    fields = entry.model_dump(exclude=stamp | {"device", "event", "device_at_ms"}, exclude_none=True)
    return draft(fields.pop("kind"), fields.pop("sku"), fields.pop("quantity"), **fields)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(batches=st.lists(st.lists(ledger_entries, max_size=12), max_size=4), steps=st.lists(st.integers(-5_000, 5_000)))
def test_balances_and_variances_are_the_oracles(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[LedgerEntry]], steps: list[int]
) -> None:
    """SQLite is a fast implementation of the oracle, whatever is booked and however the clock jumps."""
    clock = HandClock()
    with Ledger.create(tmp_path_factory.mktemp("ledger") / "ledger.db", "gw-1", clock) as ledger:
        for number, batch in enumerate(batches):
            append(ledger, *map(as_draft, batch))
            clock.turn(steps[number] if number < len(steps) else 1)
        entries = [
            (EntryKey(hlc, "gw-1", ledger.epoch, seq), ENTRY.validate_json(body))
            for seq, hlc, body in ledger.connection.execute("SELECT seq, hlc, body FROM entry")
        ]
        expected = oracle((key, entry) for key, entry in entries if isinstance(entry, Movement | Count))
        assert queries.balances(ledger.connection) == expected.on_hand
        assert imbalance(queries.balances(ledger.connection).items()) == {}
        counted = ledger.connection.execute("SELECT hlc, seq, variance FROM movement WHERE kind = 'count'")
        assert {EntryKey(hlc, "gw-1", ledger.epoch, seq): v for hlc, seq, v in counted} == expected.variance
        found = audit.verify(ledger.connection)
        assert (found.findings, found.entries) == ([], len(entries))


def test_a_device_event_is_taken_once(ledger: Ledger) -> None:
    """Invariant I2: a device resends until it has a receipt; twice booked would be twice the stock."""
    event = receive(5, device="till-1", event="e-1")
    assert append(ledger, event, event) == [1, None]
    assert append(ledger, receive(5, device="till-2", event="e-1"), event) == [2, None]
    assert queries.stock(ledger.connection)[0].on_hand == 10


def test_a_reading_is_taken_once(ledger: Ledger) -> None:
    """A resent reading must not weigh twice in an average."""
    reading = ReadingDraft("probe", "r-1", {"temperature_c": 4.5})
    with database.transaction(ledger.connection):
        assert ledger.append_readings([reading, reading]) == [True, False]


def test_a_clock_that_steps_back_does_not_reorder(ledger: Ledger, clock: HandClock) -> None:
    """A count must stay after the movements it covers."""
    append(ledger, receive(5))
    clock.turn(-3_600_000)
    append(ledger, draft("count", "tea", 3, location="A-01"))
    assert queries.stock(ledger.connection)[0].on_hand == 3
    assert audit.verify(ledger.connection).findings == []


@pytest.mark.parametrize(
    ("tamper", "finding"),
    [
        ("UPDATE entry SET body = replace(body, '\"quantity\":5', '\"quantity\":6') WHERE seq = 1", "digest"),
        ("DELETE FROM entry WHERE seq = 2", "follows entry 1"),
        ("UPDATE entry SET hlc = 1 WHERE seq = 2", "is earlier"),
        ("UPDATE balance SET on_hand = on_hand + 1 WHERE location = 'A-01'", "balance of tea at A-01 is 16"),
        ("DELETE FROM balance WHERE location = '@supplier'", "balance of tea at @supplier"),
        ("INSERT INTO balance (location, sku, lot, on_hand, moved) VALUES ('X', 'y', '', 1, 1)", "balance of y at X"),
        ("UPDATE movement SET sku = 'coffee' WHERE seq = 3", "movement differs at entry 3"),
        ("DELETE FROM seen WHERE event = 'e-2'", "seen differs at entry 2"),
        ("INSERT INTO seen VALUES ('ghost', 'e', 99, 0)", "no entry gives"),
    ],
)
def test_verify_finds_every_change(ledger: Ledger, tamper: str, finding: str) -> None:
    """A check that cannot fail is no check."""
    append(ledger, *(receive(5, device="till-1", event=f"e-{number}") for number in (1, 2, 3)))
    assert audit.verify(ledger.connection).findings == []
    ledger.connection.execute(tamper)
    assert any(finding in found for found in audit.verify(ledger.connection).findings)


def test_rebuild_mends_what_is_derived(ledger: Ledger) -> None:
    """The entries are the truth; everything else can be had from them."""
    append(ledger, *(receive(5, device="till-1", event=f"e-{number}") for number in range(20)))
    append(ledger, draft("count", "tea", 90, location="A-01"))
    for statement in ("DELETE FROM balance", "DELETE FROM movement", "DELETE FROM seen"):
        ledger.connection.execute(statement)
    assert audit.rebuild(ledger) == 21
    assert audit.verify(ledger.connection).findings == []
    assert queries.stock(ledger.connection)[0].on_hand == 90


def _append_many(path: Path, sku: str) -> None:
    for _ in range(50):
        book(path, "receive", sku, 1, destination="A-01")


def test_several_processes_append_to_one_ledger(ledger: Ledger, path: Path) -> None:
    """The technician's command line writes while the agent runs; numbers and chain must stay whole."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append_many, args=(path, f"sku-{number}")) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [row.on_hand for row in queries.stock(ledger.connection)] == [50, 50, 50]
    assert audit.verify(ledger.connection).findings == []


def test_leaving_the_ledger_does_not_take_the_log_from_others(ledger: Ledger, path: Path) -> None:
    """A descriptor beside SQLite's drops our locks when closed; then the next to leave deletes the log under us."""
    with closing(database.open_reader(path)) as reader:
        queries.status(reader, path)
        with Ledger.open(path, SystemClock()):
            pass
        append(ledger, receive(1))
        stranger = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM entry').fetchall()"
        subprocess.run([sys.executable, "-c", stranger, str(path)], check=True)
        append(ledger, receive(2))
    with closing(sqlite3.connect(path)) as fresh:
        assert fresh.execute("SELECT count(*) FROM entry").fetchone() == (2,)


def test_a_full_disk_is_said_loudly_and_loses_nothing(ledger: Ledger) -> None:
    """An event that does not fit must be refused, not half-written."""
    append(ledger, receive(1))
    pages = ledger.connection.execute("PRAGMA page_count").fetchone()[0]
    ledger.connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(LedgerFull) as caught:
        append(ledger, *(receive(1, reference="x" * 60) for _ in range(500)))
    assert "space" in str(caught.value.hint)
    ledger.connection.execute("PRAGMA max_page_count = 1000000")
    assert audit.verify(ledger.connection).entries == 1
    assert append(ledger, receive(1)) == [2]


@pytest.mark.parametrize(
    ("kind", "quantity", "fields", "reason"),
    [
        ("pick", 1, {}, "needs a source"),
        ("count", 1, {}, "needs a location"),
        ("count", 1, {"location": "@customer"}, "virtual"),
        ("count", 1, {"location": "A", "source": "B"}, "location"),
        ("move", 1, {"source": "A", "destination": "A"}, "same location"),
        ("receive", 0, {"destination": "A"}, "quantity"),
        ("receive", 10**13, {"destination": "A"}, "quantity"),
        ("pick", 1, {"source": "@supplier"}, "cannot come from"),
        ("ship", 1, {"source": "A", "destination": "B"}, "cannot go to"),
        ("ship", 1, {"source": "A", "destination": "@transit:"}, "@"),
        ("receive", 1, {"destination": "@moon"}, "@"),
        ("receive", 1, {"destination": "A", "location": "B"}, "not a location"),
        ("receive", 1, {"destination": "A\nB"}, "destination"),
    ],
)
def test_impossible_entries_are_refused_before_they_are_queued(
    kind: str, quantity: int, fields: dict[str, str], reason: str
) -> None:
    """Once queued, a draft must become an entry: there is nobody left to tell."""
    with pytest.raises(BadInput, match=reason):
        draft(kind, "tea", quantity, **fields)  # type: ignore[arg-type]


def test_only_a_ledger_is_opened_and_none_is_overwritten(tmp_path: Path, path: Path, ledger: Ledger) -> None:
    """The technician's only copy of the truth must not be replaced by a typo."""
    del ledger
    with pytest.raises(LedgerExists), Ledger.create(path, "gw-2", SystemClock()):
        pass
    with pytest.raises(LedgerMissing) as missing:
        database.open_reader(tmp_path / "none.db")
    assert "init" in str(missing.value.hint)
    (tmp_path / "text.db").write_text("not a database, but long enough to look at" * 100)
    (tmp_path / "empty.db").touch()
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    for name in ("text.db", "empty.db", "other.db"):
        with pytest.raises(LedgerForeign):
            database.open_reader(tmp_path / name)

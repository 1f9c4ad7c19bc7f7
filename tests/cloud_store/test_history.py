"""Stock in the past on real TimescaleDB, against the definition of stock over the entries that had happened by then.

Broken when: an answer about a past moment changes although nothing new is known about it, or a report cannot be printed
again as it was.
"""

import json
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count as numbers
from itertools import product
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from cloud_api.app import create
from cloud_api.settings import ApiSettings
from cloud_cli.app import app
from cloud_store.base.connection import Connection, connect
from cloud_store.base.errors import UnknownName
from cloud_store.merge import late_counts
from cloud_store.merge.arrivals import ArrivedFrame
from cloud_store.reports import history, stock_levels
from cloud_store.reports.history import AsOf, InvalidAsOf, TooMuchHistory
from cloud_store.reports.past_stock import PastStock
from cloud_store.reports.stock_levels import StockFilter
from cloud_store.tenancy import admission, registry
from testbed.store import MergeSession
from tests.cloud_api.serving import key, served
from tests.cloud_store import histories
from tests.cloud_store.histories import BOOT, NOW_MS, Chain
from tests.cloud_store.on_a_server import ON_A_SERVER
from wire_protocol import clock, names, stock
from wire_protocol.entries import LedgerEntry, Reading
from wire_protocol.stock import Cell, EntryKey

_SITES = numbers(1)
EPOCHS = {"a": histories.EPOCH, "b": histories.EPOCH, "c": names.ulid(NOW_MS, bytes(9) + b"\x02")}
TICKS = 10
# What `boots` in a frame says is either a clock's offset, or when its zero was; all entries here have the same reading.
ZERO_MS = NOW_MS

# --- an example ---------------------------------------------------------------------------------------------------

MONDAY, TUESDAY, WEDNESDAY = (datetime(2026, 11, day, 12, tzinfo=UTC) for day in (16, 17, 18))


def ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def received(frame: ArrivedFrame, at: datetime) -> ArrivedFrame:
    return replace(frame, received_ms=ms(at))


@pytest.fixture
def late_pick(connection: Connection, database_url: str) -> Connection:
    """On Monday ten are put on a shelf and three are picked; the pick was made offline and is reported on Wednesday."""
    registry.add_site(connection, "acme", "berlin")
    for gateway in ("gw-dock", "gw-hall"):
        registry.add_gateway(connection, "acme", "berlin", gateway)
    put = histories.movement(clock.pack(ms(MONDAY)), "receive", "@supplier", "A-1", 10)
    pick = histories.movement(clock.pack(ms(MONDAY) + 1000), "pick", "A-1", "@customer", 3)
    warm = Reading(hlc=clock.pack(ms(MONDAY)), boot=BOOT, mono_ms=0, values={"temperature_c": 21.5})
    with closing(MergeSession(database_url)) as merger:
        merger.merge([received(Chain("gw-dock").seal([put]), MONDAY)])
        # Readings have numbers of their own: that some have come says nothing about the ledger.
        merger.merge([received(Chain("gw-hall", "readings").seal([warm, warm]), MONDAY)])
        merger.merge([received(Chain("gw-hall").seal([pick]), WEDNESDAY)])
    return connection


def test_a_pick_of_monday_that_is_reported_on_wednesday(late_pick: Connection) -> None:
    """Tuesday's report said ten, and still does when asked what was believed then; in truth there were seven."""

    def on_shelf(at: datetime | None, known_at: datetime | None) -> int:
        wanted = StockFilter(tenant="acme", location="A-1")
        (row,) = history.stock(late_pick, wanted, AsOf(at, known_at), limit=10).rows
        return int(row["on_hand"])

    assert on_shelf(at=TUESDAY, known_at=TUESDAY) == 10
    assert on_shelf(at=TUESDAY, known_at=None) == 7
    assert on_shelf(at=None, known_at=TUESDAY) == 10
    assert on_shelf(at=MONDAY, known_at=None) == 10
    assert on_shelf(at=None, known_at=None) == 7
    before = AsOf(MONDAY - timedelta(seconds=1))
    assert history.stock(late_pick, StockFilter(tenant="acme"), before, limit=10).rows == []


def test_both_times_are_inclusive(late_pick: Connection) -> None:
    """What happened, or was received, in that very instant counts."""
    wanted, picked = StockFilter(tenant="acme", location="A-1"), MONDAY + timedelta(seconds=1)
    for as_of, expected in (
        (AsOf(picked), 7),
        (AsOf(picked - timedelta(milliseconds=1)), 10),
        (AsOf(None, WEDNESDAY), 7),
        (AsOf(None, WEDNESDAY - timedelta(milliseconds=1)), 10),
    ):
        assert [row["on_hand"] for row in history.stock(late_pick, wanted, as_of, limit=1).rows] == [expected]


def test_without_a_time_it_is_the_stock_of_now(late_pick: Connection) -> None:
    """The same rows, fields and order as an ordinary reading, so that reports can be compared line by line."""
    for wanted in (StockFilter(tenant="acme"), StockFilter(tenant="acme", virtual=True, zero=True)):
        past = history.stock(late_pick, wanted, AsOf(), limit=100).rows
        assert [row for row in past if row["location"] != names.ADJUST] == stock_levels.stock(
            late_pick, wanted, limit=100
        ).rows


@pytest.mark.parametrize("as_api", [False, True])
def test_an_answer_is_of_one_moment(
    late_pick: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch, *, as_api: bool
) -> None:
    """What is merged while it is made is in none of its statements: else goods that move could be there twice."""
    ask = PastStock.asked.__func__  # type: ignore[attr-defined]
    move = histories.movement(clock.pack(ms(WEDNESDAY)), "move", "A-1", "B-1", 7)
    chain = Chain("gw-dock")
    chain.seal([histories.movement(clock.pack(ms(MONDAY)), "receive", "@supplier", "A-1", 10)])

    def interrupted(cls: type[PastStock], *question: Any) -> PastStock:
        with closing(MergeSession(database_url)) as merger:
            assert merger.merge([received(chain.seal([move]), WEDNESDAY)]).movements == 1
        found: PastStock = ask(cls, *question)
        return found

    monkeypatch.setattr(PastStock, "asked", classmethod(interrupted))
    acme = registry.tenant_id(late_pick, "acme")
    inside = admission.as_tenant(late_pick, acme, actor="") if as_api else nullcontext()
    with inside:
        rows = history.stock(late_pick, StockFilter(tenant="acme"), AsOf(), limit=10).rows
    assert [(row["location"], row["on_hand"]) for row in rows] == [("A-1", 7)]
    monkeypatch.undo()
    rows = history.stock(late_pick, StockFilter(tenant="acme"), AsOf(), limit=10).rows
    assert [(row["location"], row["on_hand"]) for row in rows] == [("B-1", 7)]


# --- any history --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """What gateways wrote, how wrong their clocks were found to be frame by frame, and how the frames arrived."""

    ledgers: list[list[LedgerEntry]]
    frame_sizes: list[int]
    offsets_ms: list[int]
    batch_sizes: list[int]
    seed: int
    moments: list[tuple[int | None, int | None]]
    limit: int
    tick_ms: int = 1
    folded: bool = False


ticks = st.none() | st.integers(-1, TICKS)
examples = st.builds(
    Example,
    ledgers=st.lists(histories.ledger(), min_size=1, max_size=3),
    frame_sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    offsets_ms=st.lists(st.integers(0, TICKS), min_size=1, max_size=5),
    batch_sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
    moments=st.lists(st.tuples(ticks, ticks), min_size=1, max_size=4),
    limit=st.sampled_from([1, 3, 1000]),
    tick_ms=st.sampled_from([1, 20 * 60 * 1000]),  # all in one hour, or over several
    folded=st.booleans(),
)


class Learned(NamedTuple):
    """An entry, when it happened and when the cloud learned of it."""

    key: EntryKey
    entry: LedgerEntry
    at_ms: int
    received_ms: int


class Site:
    """A site with a gateway for each ledger; `c` is a second epoch of `a`, so that ties between epochs occur."""

    def __init__(self, connection: Connection, example: Example) -> None:
        self.connection, self.example, self.name = connection, example, f"site-{next(_SITES)}"
        registry.add_site(connection, "acme", self.name)
        self.ledgers = dict(zip(EPOCHS, map(self._spread, example.ledgers), strict=False))
        # No entry may be believed to be of a time after it was received.
        self.received_ms = NOW_MS + (TICKS * example.tick_ms if example.tick_ms > 1 else 0)
        for letter in self.ledgers:
            registry.add_gateway(connection, "acme", self.name, f"{self.name}-{letter}")
        self.learned: list[Learned] = []

    def deliver(self, merger: MergeSession) -> None:
        """Merge all frames, interleaved, each batch received a tick after the one before; some come twice."""
        chance, received_ms = Random(self.example.seed), self.received_ms
        waiting = {letter: list(self._frames(letter, entries)) for letter, entries in self.ledgers.items()}
        delivered: list[ArrivedFrame] = []
        while waiting:
            batch = []
            for _ in range(chance.choice(self.example.batch_sizes)):
                if letter := chance.choice([*waiting, ""]):
                    batch.append(replace(waiting[letter].pop(0), received_ms=received_ms))
                    self._learn(letter, batch[-1])
                elif delivered:
                    batch.append(replace(chance.choice(delivered), received_ms=received_ms))
                waiting = {name: sealed for name, sealed in waiting.items() if sealed}
                if not waiting:
                    break
            merger.merge(batch)
            delivered += batch
            received_ms += self.example.tick_ms
            if self.example.folded:
                late_counts.fold_history(self.connection, 5)
        if "c" in self.ledgers:
            self._make_second_epoch()

    def _spread(self, entries: list[LedgerEntry]) -> list[LedgerEntry]:
        """The entries, a tick apart where they were a clock reading apart."""
        if self.example.tick_ms == 1:
            return entries
        first = clock.pack(NOW_MS)
        hlcs = [clock.pack(NOW_MS + (entry.hlc - first) * self.example.tick_ms) for entry in entries]
        return [entry.model_copy(update={"hlc": hlc}) for entry, hlc in zip(entries, hlcs, strict=True)]

    def _frames(self, letter: str, entries: list[LedgerEntry]) -> Iterator[ArrivedFrame]:
        chain, sizes, offsets = self._chain(letter), self.example.frame_sizes, self.example.offsets_ms
        while chain.seq < len(entries):
            size, offset = sizes[chain.frame % len(sizes)], offsets[chain.frame % len(offsets)]
            yield chain.seal(
                entries[chain.seq : chain.seq + size], boots={BOOT: ZERO_MS + offset * self.example.tick_ms}
            )

    def _chain(self, letter: str) -> Chain:
        return Chain(f"{self.name}-{letter}", epoch=EPOCHS[letter])

    def _learn(self, letter: str, arrived: ArrivedFrame) -> None:
        header = arrived.frame.header
        for seq in range(header.first_seq, header.last_seq + 1):
            entry = self.ledgers[letter][seq - 1]
            # Gateway and epoch in one word sort as the pair does.
            log = f"{self.name}-{letter.replace('c', 'a')} {header.epoch}"
            key = EntryKey(entry.hlc, log, header.epoch, seq)
            at_ms = NOW_MS + header.boots[BOOT] - ZERO_MS
            self.learned.append(Learned(key, entry, at_ms, arrived.received_ms))

    def _make_second_epoch(self) -> None:
        """Make the log of gateway `c` another epoch of gateway `a`; how gateways come to that is the merge's matter."""
        execute, gateways = self.connection.execute, (f"{self.name}-a", f"{self.name}-c")
        rows = execute(
            b"SELECT gateway_id FROM gateway WHERE name = ANY(%s) ORDER BY name", [list(gateways)]
        ).fetchall()
        (to,), (log,) = rows
        for table in (b"epoch", b"movement", b"frame", b"count"):
            execute(b"UPDATE " + table + b" SET gateway_id = %s WHERE gateway_id = %s", [to, log])
        execute(b"UPDATE count SET gateway_name = %s WHERE gateway_name = %s", gateways)

    def expected(self, at_ms: int | None, known_ms: int | None) -> dict[Cell, int]:
        """What the oracle says."""
        return stock.oracle(
            (known.key, known.entry)
            for known in self.learned
            if (at_ms is None or known.at_ms <= at_ms) and (known_ms is None or known.received_ms <= known_ms)
        ).on_hand

    def found(self, wanted: StockFilter, as_of: AsOf) -> dict[Cell, int]:
        """What the database says, page by page."""
        found: dict[Cell, int] = {}
        after: str | None = None
        while True:
            limit = self.example.limit
            page = history.stock(self.connection, wanted, as_of, limit=limit, after=after)
            assert len(page.rows) <= limit
            cells = {Cell(row["location"], row["sku"], row["lot"]): row["on_hand"] for row in page.rows}
            assert len(cells) == len(page.rows)
            assert not cells.keys() & found.keys()
            found |= cells
            after = page.after
            if after is None:
                return found


def time(at_ms: int | None) -> datetime | None:
    return None if at_ms is None else datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=at_ms)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cells_max", [3, history.CELLS_MAX])
def test_stock_at_any_two_moments_is_the_oracles(
    connection: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch, cells_max: int
) -> None:
    """Late, covered, re-counted, with clocks that were wrong, over several epochs: also `@adjust`, and by one shelf."""
    monkeypatch.setattr(history, "CELLS_MAX", cells_max)

    @settings(ON_A_SERVER, max_examples=60)
    @given(examples)
    def check(example: Example) -> None:
        site = Site(connection, example)
        site.deliver(merger)
        for as_of in example.moments:
            at_ms, known_ms = (
                None if tick is None else first_ms + tick * example.tick_ms
                for tick, first_ms in zip(as_of, (NOW_MS, site.received_ms), strict=True)
            )
            expected = site.expected(at_ms, known_ms)
            asked = AsOf(time(at_ms), time(known_ms))
            everything = StockFilter(tenant="acme", site=site.name, virtual=True)
            assert site.found(everything, asked) == expected
            shelves = {cell: held for cell, held in expected.items() if not names.is_virtual(cell.location)}
            assert site.found(replace(everything, virtual=False), asked) == shelves
            for location in ("A-1", names.ADJUST):
                there = {cell: held for cell, held in expected.items() if cell.location == location}
                assert site.found(replace(everything, location=location), asked) == there

    with closing(MergeSession(database_url)) as merger:
        check()


def test_entries_of_one_instant_are_ordered_by_gateway_then_epoch(connection: Connection, database_url: str) -> None:
    """Also where the number in the log says otherwise: a count or a movement by each of three logs at one reading."""
    tie = clock.pack(NOW_MS) + 9
    first = histories.movement(tie - 1, "receive", "@supplier", "A-1", 100)
    with closing(MergeSession(database_url)) as merger:
        for kinds in product((True, False), repeat=3):
            tied = [
                histories.count(tie, "A-1", 10 * number)
                if counted
                else histories.movement(tie, "receive", "@supplier", "A-1", number)
                for number, counted in enumerate(kinds, 1)
            ]
            ledgers: list[list[LedgerEntry]] = [[first, tied[0]], [tied[1]], [tied[2]]]
            site = Site(connection, Example(ledgers, [2], [0], [1], 0, [], 1000))
            site.deliver(merger)
            wanted = StockFilter(tenant="acme", site=site.name, virtual=True)
            assert site.found(wanted, AsOf()) == site.expected(None, None)


# --- at the door --------------------------------------------------------------------------------------------------


def stock_command(url: str, *words: str) -> Result:
    environment = {"STOCKTIDE_DATABASE_URL": url}
    return CliRunner().invoke(app, ["stock", "--tenant", "acme", *words], env=environment)


@pytest.mark.usefixtures("late_pick")
def test_the_command_says_what_it_shows(database_url: str) -> None:
    """A table about the past that looks like one about now would be believed."""
    shown = stock_command(database_url, "--at", "2026-11-17T13:00:00+01:00", "--known-at", "2026-11-17T12:00:00Z")
    assert shown.exit_code == 0, shown.output
    head, *table = shown.stdout.splitlines()
    assert head == "Stock as of 2026-11-17 13:00:00+01:00, as known at 2026-11-17 12:00:00+00:00"
    assert "10" in table[-1]
    shown = stock_command(database_url, "--at", "2026-11-17T12:00:00Z")
    assert shown.stdout.startswith("Stock as of 2026-11-17 12:00:00+00:00, as known now\n")
    shown = stock_command(database_url, "--known-at", "2026-11-17T12:00:00Z", "--json")
    assert [row["on_hand"] for row in json.loads(shown.stdout)] == [10]
    shown = stock_command(database_url, "--known-at", "2026-11-01T12:00:00Z")
    assert "as of the latest entry, as known at 2026-11-01" in shown.stdout
    assert "Nothing on hand." in shown.stdout


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["--at", "2026-11-17T12:00:00"], "has no time zone", "2026-11-17T12:00:00Z for UTC"),
        (["--known-at", "2026-11-17"], "has no time zone", "2026-11-17T00:00:00Z"),
        (["--at", "2126-01-01T00:00:00Z"], "is in the future", "Only the past is known"),
        (["--known-at", "9999-12-31T23:59:59Z"], "is in the future", "Only the past is known"),
        (["--at", "last tuesday"], "is not a time", "2026-11-17T17:00:00Z"),
        (["--at", "2026-02-30T00:00:00Z"], "is not a time", "ISO 8601"),
    ],
)
def test_a_time_that_cannot_be_used_is_explained(database_url: str, words: list[str], said: str, hint: str) -> None:
    """Exit code 2, and what to write instead."""
    result = stock_command(database_url, *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert hint in result.stderr


def test_the_command_asks_for_a_tenant(database_url: str) -> None:
    """Stock of the past is worked out from a ledger, and a ledger has an owner."""
    environment = {"STOCKTIDE_DATABASE_URL": database_url}
    result = CliRunner().invoke(app, ["stock", "--at", "2026-11-17T12:00:00Z"], env=environment)
    assert (result.exit_code, "--tenant" in result.stderr) == (2, True)


@pytest.mark.usefixtures("late_pick")
def test_the_api_answers_the_same(database_url: str) -> None:
    """`at` and `known_at` beside the other filters; what is no time in the past is a problem document."""
    with connect(database_url, application="test") as connection:
        headers = key(connection, "acme")

    def asked(**query: Any) -> Any:
        return client.get("/v1/stock", headers, **query)

    with served(create(ApiSettings(database_url=database_url))) as client:
        tuesday = TUESDAY.isoformat()
        held = [asked(at=tuesday, known_at=tuesday), asked(at=tuesday), asked(known_at=tuesday), asked()]
        assert [answer.json()["items"][0]["on_hand"] for answer in held] == [10, 7, 10, 7]
        assert all(answer.json()["items"][0].keys() == held[-1].json()["items"][0].keys() for answer in held)
        assert asked(at=tuesday, site="nowhere").json() == {"items": [], "next": None}
        assert asked(at="2126-01-01T00:00:00Z").json()["hint"] == "Only the past is known; leave the time out for now."
        statuses = [asked(at="2126-01-01T00:00:00Z"), asked(at="2026-11-17T12:00:00"), asked(at=tuesday, after="AAAA")]
        assert [answer.status for answer in statuses] == [400, 422, 400]


def test_a_question_that_takes_too_long_is_told_to_be_narrower(late_pick: Connection, database_url: str) -> None:
    """The database's limit for one statement is no reason to look for a broken server."""
    late_pick.execute("SET statement_timeout = 50")
    with connect(database_url, application="test") as other, other.transaction():
        other.execute("LOCK TABLE movement IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(TooMuchHistory) as caught:
            history.stock(late_pick, StockFilter(tenant="acme"), AsOf(TUESDAY), limit=1)
    assert "site" in str(caught.value.hint)


def test_a_moment_has_a_zone_and_a_tenant(connection: Connection) -> None:
    """Callers of the library hear the same as those of the command line."""
    with pytest.raises(InvalidAsOf, match="no time zone"):
        AsOf(datetime(2026, 11, 17, 12))  # noqa: DTZ001 - that is the mistake
    with pytest.raises(UnknownName):
        history.stock(connection, StockFilter(), AsOf(), limit=1)
    now = datetime(2026, 11, 17, 12, tzinfo=UTC)
    assert AsOf(now + timedelta(minutes=4)).require_past(now).at is not None

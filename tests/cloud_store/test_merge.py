"""What the merge does with frames that are wrong, late, foreign or hostile, on real TimescaleDB."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloud_store.base.connection import Connection
from cloud_store.base.errors import DatabaseUnavailable
from cloud_store.merge.arrivals import LogKey
from cloud_store.reports import snapshots
from cloud_store.tenancy import registry
from testbed.store import MergeSession
from tests.cloud_store import histories
from tests.cloud_store.histories import BOOT, EPOCH, NOW_MS, Chain, arrived, count, movement
from wire_protocol import clock, frames, names
from wire_protocol.entries import QUANTITY_MAX, Reading
from wire_protocol.stock import Cell

HLC = clock.pack(NOW_MS)
OTHER_BOOT = names.ulid(NOW_MS - 5, bytes(10))


@pytest.fixture
def merger(database_url: str) -> Iterator[MergeSession]:
    made = MergeSession(database_url)
    yield made
    made.close()


@pytest.fixture
def gateways(connection: Connection) -> tuple[str, str]:
    """Two gateways of one site."""
    registry.add_site(connection, "acme", "berlin")
    for name in ("gw-a", "gw-b"):
        registry.add_gateway(connection, "acme", "berlin", name)
    return "gw-a", "gw-b"


@pytest.fixture
def column(connection: Connection) -> Callable[[bytes], list[Any]]:
    """Read one column."""
    return lambda query: [row[0] for row in connection.execute(query)]


@pytest.mark.parametrize(("first", "second", "expected"), [("gw-a", "gw-b", 7), ("gw-b", "gw-a", 8)])
@pytest.mark.parametrize("movement_first", [True, False])
@pytest.mark.usefixtures("gateways")
def test_entries_of_the_same_instant_are_ordered_by_gateway(
    merger: MergeSession, connection: Connection, first: str, second: str, expected: int, *, movement_first: bool
) -> None:
    """A movement by `first` and a count by `second` at one clock reading: the name decides, not the arrival."""
    taken = Chain(first).seal([movement(HLC, "receive", "@supplier", "A-1")])
    counted = Chain(second).seal([count(HLC, "A-1", 7)])
    for frame in (taken, counted) if movement_first else (counted, taken):
        merger.merge([frame])
    assert snapshots.balances(connection, "acme", "berlin")[Cell("A-1", "screw", "")] == expected
    assert snapshots.imbalance(connection) == {}


@pytest.mark.usefixtures("gateways")
def test_a_bad_entry_is_rejected_and_its_frame_merges(merger: MergeSession, connection: Connection) -> None:
    """One impossible entry must not stop a stream forever."""
    chain = Chain("gw-a")
    good, bad = movement(HLC, "receive", "@supplier", "A-1", 5), movement(HLC + 1, "receive", "@supplier", "A-1", 6)
    bad = bad.model_copy(update={"quantity": -6})
    report = merger.merge([chain.seal([good, bad]), chain.seal([movement(HLC + 2, "pick", "A-1", "@customer", 2)])])
    outcome = report.streams[LogKey("gw-a", "ledger", EPOCH)]
    assert [(entry.seq, "quantity" in entry.reason) for entry in outcome.rejected] == [(2, True)]
    assert outcome.receiver.cursor.seq == 3
    assert snapshots.balances(connection, "acme", "berlin")[Cell("A-1", "screw", "")] == 3
    kind, payload = connection.execute("SELECT kind, payload FROM dead_letter").fetchone() or ("", b"")
    assert kind == "entry"
    assert b'"quantity":-6' in payload


@pytest.mark.usefixtures("gateways")
def test_an_unreadable_frame_keeps_its_place_in_the_chain(merger: MergeSession) -> None:
    """Its entries are rejected one by one; the next frame merges."""
    chain = Chain("gw-a")
    good = histories.columns([movement(HLC, "receive", "@supplier", "A-1").model_dump()])
    damaged = chain.seal_columns(good | {"quantity": [1, 1, 1]}, 1)
    report = merger.merge([damaged, chain.seal([movement(HLC + 1, "receive", "@supplier", "A-1")])])
    assert (report.frames, report.movements, report.rejected) == (2, 1, 1)


@pytest.mark.usefixtures("gateways")
def test_a_fork_is_quarantined_and_told(merger: MergeSession, column: Callable[[bytes], list[Any]]) -> None:
    """A second history under the same name must not be counted; its frames are kept for a person to judge."""
    merger.merge([Chain("gw-a").seal([movement(HLC, "receive", "@supplier", "A-1")])])
    other = Chain("gw-a").seal([movement(HLC, "receive", "@supplier", "A-1", 99)])
    for _ in range(3):
        report = merger.merge([other])
    assert report.forks == 1
    ack = report.streams[LogKey("gw-a", "ledger", EPOCH)].receiver.ack(NOW_MS, 16)
    assert ack.fork is not None
    assert column(b"SELECT times FROM dead_letter") == [3]
    assert column(b"SELECT quantity FROM movement") == [1]


@pytest.mark.usefixtures("gateways")
def test_unknown_and_disabled_gateways_are_refused(
    merger: MergeSession, connection: Connection, column: Callable[[bytes], list[Any]]
) -> None:
    """Only the registry says who may write, and for which tenant."""
    registry.set_gateway_state(connection, "gw-b", "disabled")
    entry = movement(HLC, "receive", "@supplier", "A-1")
    report = merger.merge([Chain(name).seal([entry]) for name in ("gw-a", "gw-b", "gw-unknown")])
    assert report.refused == {"gw-b", "gw-unknown"}
    assert set(report.streams) == {LogKey("gw-a", "ledger", EPOCH)}
    assert sorted(column(b"SELECT reason FROM dead_letter")) == [
        "the gateway is disabled",
        "the gateway is not in the registry",
    ]


@pytest.mark.usefixtures("gateways")
def test_a_sum_beyond_64_bits_rejects_one_frame_only(merger: MergeSession, connection: Connection) -> None:
    """A hostile gateway cannot make a whole worker fail forever by overflowing a balance."""
    big, small = Chain("gw-a"), Chain("gw-b")
    merger.merge([big.seal([movement(HLC, "receive", "@supplier", "A-1", sku="gold")])])
    connection.execute("UPDATE balance SET moved = 9223372036854770000 WHERE moved = 1")
    batch = [
        small.seal([movement(HLC, "receive", "@supplier", "A-1", 1)]),
        big.seal([movement(HLC, "receive", "@supplier", "A-1", QUANTITY_MAX, sku="gold")]),
        small.seal([movement(HLC + 1, "receive", "@supplier", "A-1", 1)]),
    ]
    report = merger.merge(batch)
    assert (report.frames, report.movements, report.rejected) == (3, 2, 1)
    assert snapshots.balances(connection, "acme", "berlin")[Cell("A-1", "screw", "")] == 2


@pytest.mark.usefixtures("gateways")
def test_a_verdict_is_told_although_the_batch_was_taken_apart(merger: MergeSession, connection: Connection) -> None:
    """The technician must learn which entry was not stored, also when later frames of the stream follow at once."""
    chain = Chain("gw-a")
    merger.merge([chain.seal([movement(HLC, "receive", "@supplier", "A-1", sku="gold")])])
    connection.execute("UPDATE balance SET moved = 9223372036854770000 WHERE moved = 1")
    batch = [
        chain.seal([movement(HLC + 1, "receive", "@supplier", "A-1", QUANTITY_MAX, sku="gold")]),
        *(chain.seal([movement(HLC + 2 + n, "receive", "@supplier", "A-1")]) for n in range(3)),
    ]
    outcome = merger.merge(batch).streams[LogKey("gw-a", "ledger", EPOCH)]
    assert ([entry.seq for entry in outcome.rejected], outcome.receiver.cursor.frame) == ([2], 5)


@pytest.mark.usefixtures("gateways")
def test_times_are_true_where_the_boot_is_known_and_bounded_elsewhere(
    merger: MergeSession, connection: Connection
) -> None:
    """A gateway that booted in 1970 gets its day right; what is still impossible is bounded, flagged, told and kept."""
    year_ms, zero_ms = 365 * 24 * 3600 * 1000, NOW_MS - 3_600_000
    in_1970 = movement(clock.pack(60_000), "receive", "@supplier", "A-1").model_copy(update={"mono_ms": 60_000})
    # The same boot after somebody had set the wall clock, a year ahead: the monotonic clock knows better.
    ahead = movement(clock.pack(NOW_MS + year_ms), "receive", "@supplier", "A-1")
    set_later = ahead.model_copy(update={"mono_ms": 120_000})
    elsewhere = ahead.model_copy(update={"hlc": ahead.hlc + 1, "boot": OTHER_BOOT})
    report = merger.merge([Chain("gw-a").seal([in_1970, set_later, elsewhere], boots={BOOT: zero_ms})])
    rows = connection.execute("SELECT extract(epoch FROM at) * 1000, claimed_ms FROM movement ORDER BY seq").fetchall()
    bounded_ms = NOW_MS + 5 * 60 * 1000
    assert rows == [(zero_ms + 60_000, None), (zero_ms + 120_000, None), (bounded_ms, NOW_MS + year_ms)]
    outcome = report.streams[LogKey("gw-a", "ledger", EPOCH)]
    assert [(told.seq, told.at_ms) for told in outcome.bounded] == [(3, bounded_ms)]


@pytest.mark.usefixtures("gateways")
def test_readings_have_a_stream_of_their_own(merger: MergeSession, connection: Connection) -> None:
    """A reading in the ledger is rejected; in its stream it is stored, each value once."""
    reading = Reading(
        hlc=HLC, boot=BOOT, mono_ms=0, device="probe-1", values={"temperature_c": 4.5, "humidity_pct": 60}
    )
    report = merger.merge([Chain("gw-a").seal([reading]), Chain("gw-a", "readings").seal([reading])])
    assert (report.readings, report.rejected) == (1, 1)
    assert snapshots.readings(connection) == {("acme", "gw-a"): 1}


@pytest.mark.usefixtures("gateways")
def test_nothing_is_merged_when_the_chain_has_a_gap(merger: MergeSession) -> None:
    """The acknowledgement asks for the missing frame."""
    chain = Chain("gw-a")
    first = chain.seal([movement(HLC, "receive", "@supplier", "A-1")])
    second = chain.seal([movement(HLC + 1, "receive", "@supplier", "A-1")])
    report = merger.merge([second])
    assert report.entries == 0
    assert report.streams[LogKey("gw-a", "ledger", EPOCH)].receiver.ack(NOW_MS, 16).want == 1
    assert merger.merge([first, arrived("gw-a", first.payload), second]).duplicates == 1


def test_two_sites_share_nothing_but_goods_in_transit(merger: MergeSession, connection: Connection) -> None:
    """Each site books transit for itself; over the tenant it nets out, with the SKU and shelf names the same."""
    for site in ("berlin", "vienna"):
        registry.add_site(connection, "acme", site)
        registry.add_gateway(connection, "acme", site, f"gw-{site}")
    sent = movement(HLC, "ship", "A-1", "@transit:vienna", 4)
    got = movement(HLC, "arrive", "@transit:vienna", "A-1", 4)
    merger.merge([Chain("gw-berlin").seal([sent]), Chain("gw-vienna").seal([got])])
    berlin, vienna = (snapshots.balances(connection, "acme", site) for site in ("berlin", "vienna"))
    transit = Cell("@transit:vienna", "screw", "")
    assert berlin[transit] + vienna[transit] == 0
    assert (berlin[Cell("A-1", "screw", "")], vienna[Cell("A-1", "screw", "")]) == (-4, 4)


def test_without_a_database_nothing_is_merged() -> None:
    """The caller learns that the database is away, whatever the driver calls that."""
    merger = MergeSession("postgresql://127.0.0.1:1/none")
    with pytest.raises(DatabaseUnavailable):
        merger.merge([Chain("gw-a").seal([movement(HLC, "receive", "@supplier", "A-1")])])


def test_the_first_frame_of_another_gateway_does_not_fit(merger: MergeSession, connection: Connection) -> None:
    """Digest of the first frame depends on gateway and epoch, so a foreign first frame does not fit either."""
    registry.add_site(connection, "acme", "berlin")
    registry.add_gateway(connection, "acme", "berlin", "gw-a")
    foreign = Chain("gw-b").seal([movement(HLC, "receive", "@supplier", "A-1")])
    assert frames.decode(foreign.payload).header.frame == 1
    assert merger.merge([arrived("gw-a", foreign.payload)]).forks == 1

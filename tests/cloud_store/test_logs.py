"""A gateway with several logs: restored, replaced, cloned, and its old disk plugged in again; on real TimescaleDB.

Broken when a scan of any of them is lost or counts twice, or when one gateway is given the frames of another site.
"""

from collections.abc import Iterator
from contextlib import closing

import pytest

from cloud_store.base.connection import Connection
from cloud_store.merge import alarms
from cloud_store.merge.arrivals import ArrivedFrame, LogKey, MergeReport
from cloud_store.provisioning import sites
from cloud_store.reports import snapshots
from cloud_store.tenancy import registry
from testbed.store import MergeSession, StoreModule
from tests.cloud_store.histories import EPOCH, NOW_MS, Chain, head, movement
from tests.cloud_store.scans import HLC, NEXT, on_hand, scan
from wire_protocol import frames, names
from wire_protocol.frames import EPOCHS_MAX, LogHead
from wire_protocol.site_messages import LogCursor, SiteRequest

THIRD = names.ulid(NOW_MS + 2, bytes(10))


@pytest.fixture
def merger(connection: Connection, database_url: str) -> Iterator[MergeSession]:
    """A merger, and two gateways of one site, one of another."""
    for site in ("berlin", "vienna"):
        registry.add_site(connection, "acme", site)
    for name, site in (("gw-a", "berlin"), ("gw-b", "berlin"), ("gw-far", "vienna")):
        registry.add_gateway(connection, "acme", site, name)
    made = MergeSession(database_url)
    yield made
    made.close()


def verdicts(report: MergeReport, epoch: str) -> list[int]:
    """The entries of a log that were rejected."""
    return [told.seq for told in report.streams[LogKey("gw-a", "ledger", epoch)].rejected]


def test_a_new_epoch_must_know_the_old_one_and_then_both_count(merger: MergeSession, connection: Connection) -> None:
    """A replacement that has not fetched what the cloud has would take scans that are sent again for new ones."""
    old = Chain("gw-a")
    merger.merge([old.seal([scan(1), scan(2)])])
    ignorant = merger.merge([Chain("gw-a", epoch=NEXT).seal([scan(3)])])
    assert (ignorant.forks, on_hand(connection)) == (1, 2)
    fork = ignorant.streams[LogKey("gw-a", "ledger", NEXT)].receiver.ack(NOW_MS, 16).fork
    assert fork is not None
    assert EPOCH in fork
    assert [alarm["kind"] for alarm in alarms.listing(connection, limit=9)] == ["fork"]
    knowing = Chain("gw-a", epoch=NEXT)
    merger.merge([knowing.seal([scan(3)], after={EPOCH: head(old)})])
    merger.merge([knowing.seal([scan(4)])])
    assert on_hand(connection) == 4


def test_two_logs_of_a_cloned_disk_go_on_side_by_side(merger: MergeSession, connection: Connection) -> None:
    """Neither stops the other, and the same number in both is not the same entry."""
    first = Chain("gw-a")
    merger.merge([first.seal([scan(1)])])
    clone = Chain("gw-a", epoch=NEXT)
    merger.merge([clone.seal([scan(10, device="till-2")], after={EPOCH: head(first)})])
    for number in range(2, 5):
        merger.merge([first.seal([scan(number)]), clone.seal([scan(10 + number, device="till-2")])])
    assert on_hand(connection) == 8
    rows = [row for row in snapshots.entries(connection) if row.table == "movement"]
    assert [(row.rows, row.distinct) for row in rows] == [(8, 8)]


@pytest.mark.parametrize("together", [False, True])
def test_a_scan_in_two_logs_that_did_not_know_of_each_other_counts_once(
    merger: MergeSession, connection: Connection, *, together: bool
) -> None:
    """The gateway died between commit and receipt, the device sent again, and then the old disk was plugged in."""
    old, new = Chain("gw-a"), Chain("gw-a", epoch=NEXT)
    merger.merge([old.seal([scan(1)])])
    batch: list[ArrivedFrame] = [
        new.seal([scan(7), scan(2, 5)], after={EPOCH: head(old)}),
        old.seal([scan(2, 5).model_copy(update={"hlc": HLC + 9}), scan(3)]),
    ]
    reports = [merger.merge(batch)] if together else [merger.merge([frame]) for frame in batch]
    assert (verdicts(reports[-1], EPOCH), on_hand(connection)) == ([2], 1 + 1 + 5 + 1)
    # Later frames of the younger log are checked against what the older has brought since.
    report = merger.merge([new.seal([scan(3), scan(8)])])
    assert (verdicts(report, NEXT), on_hand(connection)) == ([3], 9)
    found = {alarm["kind"]: alarm["times"] for alarm in alarms.listing(connection, limit=9)}
    assert found == {"fork": 1, "repeated-events": 2}
    assert alarms.clear(connection, "gw-a") == 2
    assert alarms.listing(connection, limit=9) == []


def test_a_successor_that_knew_everything_is_not_searched_for_repetitions(
    merger: MergeSession, connection: Connection
) -> None:
    """Otherwise every gateway that was ever replaced would pay for it forever."""
    old, new = Chain("gw-a"), Chain("gw-a", epoch=NEXT)
    merger.merge([old.seal([scan(1)])])
    merger.merge([new.seal([scan(2)], after={EPOCH: head(old)})])
    # Nobody sends this: it shows that the old log is not asked, because it has not moved.
    merger.merge([new.seal([scan(1)])])
    assert on_hand(connection) == 3


def test_a_gateway_is_sent_what_it_lacks_of_its_own_site(
    merger: MergeSession, connection: Connection, database_url: str
) -> None:
    """Byte for byte, in order, with the entries that do not count, and nothing of another site."""
    a, b, far = Chain("gw-a"), Chain("gw-b"), Chain("gw-far")
    sent = [a.seal([scan(n)]) for n in range(1, 20)] + [b.seal([scan(50)]), far.seal([scan(60)])]
    bad = movement(HLC + 99, "receive", "@supplier", "A-1").model_copy(update={"quantity": -1})
    sent.append(b.seal([scan(51), bad]))
    merger.merge(sent)
    with closing(StoreModule(sites, database_url)) as store:
        answer = store.answer("gw-b", SiteRequest(own=EPOCH), bytes_max=1 << 20)
        assert [frame.frame for frame in answer.frames] == a.sealed
        assert {(h.gateway, h.frame, h.seq) for h in answer.heads} == {("gw-a", 19, 19), ("gw-b", 2, 3)}
        rest = SiteRequest(own=EPOCH, logs=(LogCursor(gateway="gw-a", epoch=EPOCH, frame=17),))
        assert [frame.frame for frame in store.answer("gw-b", rest, bytes_max=1 << 20).frames] == a.sealed[17:]
        first = store.answer("gw-b", SiteRequest(own=EPOCH), bytes_max=1)
        assert (len(first.frames), first.more) == (1, True)
        everything = store.answer("gw-b", SiteRequest(), bytes_max=1 << 20).frames
        own = [frame for frame in everything if frame.gateway == "gw-b"]
        assert ([frame.rejected for frame in own], len(everything)) == ([(), (3,)], 21)
        assert frames.decode(own[-1].frame).header.frame == 2
        assert store.answer("gw-far", SiteRequest(own=EPOCH), bytes_max=1 << 20).frames == []
        registry.set_gateway_state(connection, "gw-b", "disabled")
        assert store.answer("gw-b", SiteRequest(), bytes_max=1 << 20) == ([], [], False, False)
        assert store.answer("gw-unknown", SiteRequest(), bytes_max=1 << 20) == ([], [], False, False)


def test_a_gateway_may_have_more_epochs_than_a_frame_can_name(merger: MergeSession, connection: Connection) -> None:
    """The seventieth restore must not shut a gateway out forever: the latest epochs are enough to know."""
    heads: dict[str, LogHead] = {}
    for number in range(EPOCHS_MAX + 3):
        epoch = names.ulid(NOW_MS + number, bytes(10))
        chain = Chain("gw-a", epoch=epoch)
        latest = dict(sorted(heads.items())[-EPOCHS_MAX:])
        assert merger.merge([chain.seal([scan(number)], after=latest)]).forks == 0
        heads[epoch] = head(chain)
    assert on_hand(connection) == EPOCHS_MAX + 3

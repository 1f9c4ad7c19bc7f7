"""Logs of one gateway that meet at the worst moment: beside each other, after a failover, in numbers, under rebuild.

Broken when a scan is lost or counts twice, a worker falls over a frame, or a gateway fills tables by inventing epochs.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from cloud_store.base.connection import Connection, connect
from cloud_store.merge import cross_log_dedup, cursors
from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.plan import Plan
from cloud_store.merge.presence import VERDICT_FRAMES_MAX
from cloud_store.reports import verification
from cloud_store.tenancy import registry
from testbed.eventually import eventually
from testbed.store import MergeSession, StoreModule
from tests.cloud_store.histories import EPOCH, NOW_MS, Chain, head, movement
from tests.cloud_store.scans import HLC, NEXT, on_hand, scan
from wire_protocol import frames, names
from wire_protocol.messages import Ack
from wire_protocol.replication import Sender

LOG = LogKey("gw-a", "ledger", EPOCH)


@pytest.fixture
def merger(connection: Connection, database_url: str) -> Iterator[MergeSession]:
    """A merger, and two gateways of one site."""
    registry.add_site(connection, "acme", "berlin")
    for name in ("gw-a", "gw-b"):
        registry.add_gateway(connection, "acme", "berlin", name)
    made = MergeSession(database_url)
    yield made
    made.close()


def test_the_longest_names_do_not_make_a_verdict_that_nobody_can_send(
    merger: MergeSession, connection: Connection
) -> None:
    """A worker that falls over it falls over it again, and so does the next one."""
    old, new = Chain("gw-a"), Chain("gw-a", epoch=NEXT)
    long = scan(51).model_copy(update={"device": "d" * 64, "event": "e" * 64})
    merger.merge([old.seal([scan(number) for number in range(1, 12)])])
    merger.merge([new.seal([*(scan(20 + number) for number in range(12)), long], after={EPOCH: head(old)})])
    report = merger.merge([old.seal([long.model_copy(update={"hlc": HLC + 301})])])
    assert [told.seq for told in report.streams[LOG].rejected] == [12]
    assert on_hand(connection) == 24


def test_a_new_epoch_beside_a_merge_of_the_old_log(
    merger: MergeSession, connection: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, one scan in both logs: the log that begins between planning and locking must be seen."""
    old, new = Chain("gw-a"), Chain("gw-a", epoch=NEXT)
    merger.merge([old.seal([scan(1)])])
    first, second = new.seal([scan(2, 5)], after={EPOCH: head(old)}), old.seal([scan(2, 5)])
    begun: list[bool] = []
    take_out = cross_log_dedup.take_out

    def between(session: Connection, planned: Plan) -> None:
        take_out(session, planned)
        if not begun:
            begun.append(True)
            with closing(MergeSession(database_url)) as other:
                other.merge([first])

    monkeypatch.setattr(cross_log_dedup, "take_out", between)
    report = merger.merge([second])
    assert (report.retries, report.rejected, on_hand(connection)) == (1, 1, 6)


def test_a_log_that_went_on_otherwise_after_a_failover_is_searched(
    merger: MergeSession, connection: Connection
) -> None:
    """What the new epoch knew of the old log is not what the cloud has of it now, though it is as long."""
    old, twin = Chain("gw-a"), Chain("gw-a")
    merger.merge([old.seal([scan(1)])])
    twin.seal([scan(1)])
    old.seal([scan(2)])  # the failover has lost it; the new epoch knows it
    new = Chain("gw-a", epoch=NEXT)
    merger.merge([new.seal([scan(7)], after={EPOCH: head(old)})])
    merger.merge([twin.seal([scan(33, 5)])])
    report = merger.merge([new.seal([scan(33, 5)])])
    assert (report.rejected, on_hand(connection)) == (1, 7)


def test_a_technicians_entries_in_a_cloned_backlog_count_once(merger: MergeSession, connection: Connection) -> None:
    """They have no event id; two disks that were one have them at the same reading of the clock."""
    typed = [movement(HLC + number, "receive", "@supplier", "A-1", 10) for number in range(4)]
    disk, clone = Chain("gw-a"), Chain("gw-a", epoch=NEXT)
    merger.merge([disk.seal(typed[:2])])
    merger.merge([clone.seal(typed[2:], after={EPOCH: head(disk)})])
    report = merger.merge([disk.seal(typed[2:])])
    assert (report.rejected, on_hand(connection)) == (2, 40)


def waits_for_a_lock(connection: Connection) -> bool:
    """Whether somebody in this database waits for what somebody else has locked."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return connection.execute(waiting).fetchone() is not None


def test_a_rebuild_keeps_new_logs_away(merger: MergeSession, connection: Connection, database_url: str) -> None:
    """A gateway's first frame between reading the entries and writing the balances would be overwritten."""
    first, second = Chain("gw-a"), Chain("gw-b")
    merger.merge([first.seal([scan(number) for number in range(1, 11)])])
    site = verification.sites(connection, "acme", "berlin")[0]
    frame = second.seal([scan(100, 7)])
    merging: list[Future[Any]] = []

    with ThreadPoolExecutor() as pool, connect(database_url, application="rebuild") as session:

        def meanwhile(_: int) -> None:
            if not merging:
                merging.append(pool.submit(merger.merge, [frame]))
                eventually(lambda: waits_for_a_lock(connection), "the merge waits for the rebuild")
                assert not merging[0].done()

        verification.rebuild(session, site, meanwhile)
        assert merging[0].result(timeout=60).frames == 1
    assert (on_hand(connection), verification.verify(connection, site).findings) == (17, [])


@pytest.mark.parametrize("frame", [1, 2])
def test_invented_epochs_leave_no_rows(merger: MergeSession, connection: Connection, frame: int) -> None:
    """A gateway that makes up epochs must not make every later merge of its own slower and slower."""
    merger.merge([Chain("gw-a").seal([scan(1)])])
    for number in range(30):
        chain = Chain("gw-a", epoch=names.ulid(NOW_MS + 1000 + number, bytes(10)))
        merger.merge([[chain.seal([scan(2)]) for _ in range(frame)][-1]])
    row: Any = connection.execute("SELECT count(*) FROM stream_cursor").fetchone()
    assert row[0] == 1


def test_every_verdict_is_told_however_many(merger: MergeSession, database_url: str) -> None:
    """A gateway that does not hear of one counts the entry forever."""
    old, one, new = Chain("gw-a"), Chain("gw-a"), Chain("gw-a", epoch=NEXT)
    one.seal([scan(0)])
    merger.merge([old.seal([scan(0)])])
    backlog = [[scan(number) for number in range(first, first + 500)] for first in range(1, 2000, 500)]
    merger.merge([old.seal(entries) for entries in backlog])
    frames_new = [new.seal(entries, after={EPOCH: head(one)} if not new.frame else None) for entries in backlog]
    log = LOG._replace(epoch=NEXT)
    outcome = merger.merge(frames_new).streams[log]
    acks = list(outcome.receiver.acks(NOW_MS, 16, rejected=outcome.rejected, ask=False))
    told = {rejected.seq for ack in acks for rejected in Ack.decode(ack.encode()).rejected}
    assert (len(told), len(acks)) == (2000, 8)
    bad = movement(HLC, "receive", "@supplier", "A-1").model_copy(update={"quantity": -1})
    merger.merge([Chain("gw-b").seal([bad])])
    with closing(StoreModule(cursors, database_url)) as store:
        again = store.verdicts([log, LOG._replace(gateway="gw-b")], limit=VERDICT_FRAMES_MAX)
        assert {key.gateway: len(verdicts) for key, verdicts in again.items()} == {"gw-a": 2000, "gw-b": 1}


def test_the_clone_whose_frame_was_merged_is_not_told_that_it_forked(merger: MergeSession) -> None:
    """Both hear the same acknowledgement; the one whose digest it names has the cloud's history."""
    ours, theirs = Chain("gw-a"), Chain("gw-a")
    merger.merge([ours.seal([scan(1)])])
    theirs.seal([scan(1)])
    report = merger.merge([ours.seal([scan(2)]), theirs.seal([scan(3)])])
    told = report.streams[LOG].receiver.ack(NOW_MS, 16)
    assert told.fork is not None

    def forked(chain: Chain) -> bool:
        sender = Sender(
            "ledger", EPOCH, sealed=2, acked=1, digest_of=lambda frame: frames.digest(chain.sealed[frame - 1])
        )
        sender.receive(told, 0)
        return sender.forked is not None

    assert (forked(ours), forked(theirs)) == (False, True)

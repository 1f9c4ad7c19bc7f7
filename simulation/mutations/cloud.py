"""How the planted bugs of the cloud do it wrong."""

from cloud_store.merge.plan import Plan
from simulation.cloud.worker import SimWorker
from wire_protocol import topics
from wire_protocol.frames import FrameHeader
from wire_protocol.replication import Cursor, Receiver, Verdict
from wire_protocol.stock import Balance, EntryKey
from wire_protocol.topics import Channel

_OFFER = Receiver.offer
_AFTER_COUNT = Balance.after_count


class AckBeforeCommit(SimWorker):
    """Acknowledges from the plan."""

    def commit(self, planned: Plan) -> None:
        for key, outcome in planned.report.streams.items():
            ack = outcome.receiver.ack(self.world.now_ms, self.loop.window)
            self.publish(topics.link(key.gateway, Channel.ACK), ack.encode())
        super().commit(planned)


class CursorApart(SimWorker):
    """Cursors first, rows in another transaction."""

    def commit(self, planned: Plan) -> None:
        with self.store.transaction(self.session):
            self.require_fresh(planned)
            self.write_cursors(planned)
        self.crash_point("between its transactions")
        with self.store.transaction(self.session):
            self.write_rows(planned)
        self.committed(planned)


class RowsApart(SimWorker):
    """Rows first, cursors in another transaction."""

    def commit(self, planned: Plan) -> None:
        with self.store.transaction(self.session):
            self.require_fresh(planned)
            self.write_rows(planned)
        self.crash_point("between its transactions")
        with self.store.transaction(self.session):
            self.write_cursors(planned)
        self.committed(planned)


def offer_with_gaps(self: Receiver, header: FrameHeader, digest: str) -> Verdict:
    """Whatever is not behind is next."""
    if header.frame <= self.cursor.frame:
        return Verdict.DUPLICATE
    self.cursor = Cursor(header.frame, header.last_seq, digest)
    return Verdict.MERGE


def offer_repeated(self: Receiver, header: FrameHeader, digest: str) -> Verdict:
    """A repetition is merged like the first time."""
    verdict = _OFFER(self, header, digest)
    return Verdict.MERGE if verdict is Verdict.DUPLICATE else verdict


def count_as_delta(self: Balance, key: EntryKey, quantity: int, moved_since: int) -> Balance:
    """What was found is added."""
    return _AFTER_COUNT(self, key, self.on_hand + quantity, moved_since)


def count_forgets(self: Balance, key: EntryKey, quantity: int, moved_since: int) -> Balance:
    """Movements after the count are forgotten."""
    del moved_since
    return _AFTER_COUNT(self, key, quantity, 0)


def move_always(self: Balance, key: EntryKey, quantity: int) -> Balance:
    """A movement counts whether or not a later count has covered it."""
    last = key if self.last is None else max(self.last, key)
    return self._replace(on_hand=self.on_hand + quantity, moved=self.moved + quantity, last=last)

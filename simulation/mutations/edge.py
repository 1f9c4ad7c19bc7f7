"""How the planted bugs of the edge do it wrong."""

from collections.abc import Sequence

from edge_agent.ledger import outbox
from edge_agent.ledger.database import Connection
from edge_agent.ledger.drafts import Arrival, Draft, ReadingDraft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.writer import Append
from edge_agent.link.shipping import Shipping
from simulation.edge.machine import Machine
from simulation.network import Network
from wire_protocol import clock, frames
from wire_protocol.effects import Effect
from wire_protocol.entries import ENTRIES, Count, Movement, Reading
from wire_protocol.messages import Ack
from wire_protocol.replication import Sender
from wire_protocol.times import TimeDoubt, TrueTime, true_time
from wire_protocol.topics import Stream

_APPEND = Ledger.append
_BODY = outbox.body
_ACKNOWLEDGED = Shipping.acknowledged
_RECEIVE = Sender.receive
_GO_BACK = Sender._go_back  # noqa: SLF001 - a planted bug is put where the real one would be
_ADMITTED = Sender._admitted  # noqa: SLF001 - as above


class ReceiptBeforeCommit(Machine):
    """Gives the receipt on arrival."""

    def take(self, made: Draft | ReadingDraft) -> None:
        self.settle([Append(made, None)])
        super().take(made)


def append_by_time(self: Ledger, drafts: Sequence[Draft]) -> list[int | None]:
    """What has the time of the entry before it is taken for a repetition."""
    seqs: list[int | None] = []
    for draft in drafts:
        repeated = clock.wall_ms(self.tail().hlc) == self.clock.now_ms()
        seqs += [None] if repeated else _APPEND(self, [draft])
    return seqs


def never_late(self: Ledger, arrival: Arrival | None, mono_ms: int) -> tuple[int, TimeDoubt | None]:
    """Everything has just happened."""
    del self, arrival, mono_ms
    return 0, None


def place_by_wall_clock(self: object, at_ms: int, mono_ms: int) -> int:
    """Nobody asks what was recorded before and after."""
    del self, mono_ms
    return clock.pack(at_ms)


def tick_without_counter(last: int, now_ms: int) -> int:
    """Never back, but not always forward."""
    return max(clock.pack(now_ms), last)


def reseal(connection: Connection, stream: Stream, frame: int) -> bytes | None:
    """The same entries, encoded again."""
    body = _BODY(connection, stream, frame)
    if body is None:
        return None
    sealed = frames.decode(body)
    header = sealed.header.model_copy(update={"replay": not sealed.header.replay})
    return frames.seal(header, ENTRIES.validate_python(sealed.rows))


def admit_one_more(self: Sender) -> int:
    """One more than the window."""
    return _ADMITTED(self) + 1


def never_step_back(self: Sender, want: int, now_ms: int) -> list[Effect]:
    """What was acknowledged is never sent again."""
    return [] if want <= self.acked_frame else _GO_BACK(self, want, now_ms)


def receive_without_digest(self: Sender, ack: Ack, now_ms: int) -> list[Effect]:
    """Whose frame it is that the cloud has is not asked."""
    return _RECEIVE(self, ack.model_copy(update={"digest": None}), now_ms)


async def acknowledged_for_any_log(self: Shipping, ack: Ack) -> None:
    """Whichever epoch is acknowledged, it is taken for this one."""
    await _ACKNOWLEDGED(self, ack.model_copy(update={"epoch": self.epoch}))


def wall_clock(self: Ledger) -> int:
    """What the cloud has told about the time is not used."""
    return self.clock.now_ms()


def time_from_wall_clock(entry: Movement | Count | Reading, boots: object, received_ms: int) -> TrueTime:
    """The clock of the entry is believed."""
    del boots
    return true_time(entry, {}, received_ms)


def flip_anywhere(self: Network, payload: bytes) -> bytes:
    """A flipped bit, plain JSON or not."""
    return self.flip(payload, self.chance.randrange(len(payload)))

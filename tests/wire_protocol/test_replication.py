"""Replication: over a network that drops, repeats, reorders and delays, every frame is merged once and in order."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.wire_protocol.strategies import EPOCH
from wire_protocol import frames, names
from wire_protocol.effects import Acked, Effect, Forked, Seal, Send, SteppedBack
from wire_protocol.errors import WireError
from wire_protocol.frames import FrameHeader, LogHead
from wire_protocol.messages import Ack, Rejected
from wire_protocol.reasons import ForkCode
from wire_protocol.replication import NO_CURSOR, Cursor, Receiver, Sender, SenderLimits, Verdict

LIMITS = SenderLimits(window_frames_max=4, live_entries_max=3, drain_entries_max=5, resend_delay_ms=100)
OTHER_EPOCH = names.ulid(1, bytes(10))


@dataclass
class Edge:
    """A sender with the ledger it needs: entries, sealed frames, all in memory."""

    entries: int = 0
    source: int = 0
    chain: list[tuple[FrameHeader, str]] = field(default_factory=list)
    sender: Sender = field(default_factory=lambda: Sender("ledger", EPOCH, sealed=0, acked=0, limits=LIMITS))
    sent: list[int] = field(default_factory=list)

    def execute(self, effects: list[Effect], now_ms: int) -> None:
        """Seal and send as the sender says."""
        while effects:
            match effects.pop(0):
                case Seal(entries_max):
                    effects += self.seal(min(entries_max, self.entries - self.source), now_ms)
                case Send(frame):
                    self.sent.append(frame)
                case Acked() | SteppedBack():
                    pass
                case Forked(reason):
                    pytest.fail(f"forked: {reason}")

    def seal(self, count: int, now_ms: int) -> list[Effect]:
        """Seal the next entries."""
        prev = self.chain[-1][1] if self.chain else frames.genesis("gw", EPOCH, "ledger")
        header = FrameHeader(
            stream="ledger", epoch=EPOCH, frame=len(self.chain) + 1, first_seq=self.source + 1, count=count, prev=prev
        )
        self.chain.append((header, frames.digest(header.model_dump_json().encode())))
        self.source += count
        return self.sender.sealed(header.frame, self.entries - self.source, now_ms)


class Link(RuleBasedStateMachine):
    """Any interleaving of work, time and network faults."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1_000
        self.edge = Edge()
        self.up: list[int] = []
        self.down: list[Ack] = []
        self.committed = NO_CURSOR
        self.merged: list[int] = []
        self.edge.execute(self.edge.sender.connected(self.now_ms), self.now_ms)

    def take_sent(self) -> None:
        self.up += self.edge.sent
        self.edge.sent.clear()

    @rule(count=st.integers(1, 12))
    def commit(self, count: int) -> None:
        self.edge.entries += count
        waiting = self.edge.entries - self.edge.source
        self.edge.execute(self.edge.sender.waiting(waiting, self.now_ms, self.now_ms), self.now_ms)
        self.take_sent()

    @rule(delay_ms=st.sampled_from([1, 60, 150, 5_000]))
    def wait(self, delay_ms: int) -> None:
        self.now_ms += delay_ms
        self.edge.execute(self.edge.sender.tick(self.now_ms), self.now_ms)
        self.take_sent()

    @precondition(lambda self: self.up)
    @rule(data=st.data(), keep=st.booleans(), window=st.integers(0, 6))
    def deliver_frame(self, data: st.DataObject, keep: bool, window: int) -> None:  # noqa: FBT001 - drawn
        index = data.draw(st.integers(0, len(self.up) - 1))
        frame = self.up[index] if keep else self.up.pop(index)
        receiver = Receiver("gw", "ledger", EPOCH, self.committed)
        verdict = receiver.offer(*self.edge.chain[frame - 1])
        assert verdict is not Verdict.FORK
        if verdict is Verdict.MERGE:
            self.merged.append(frame)
            self.committed = receiver.cursor
        self.down.append(receiver.ack(self.now_ms, window))

    @precondition(lambda self: self.down)
    @rule(data=st.data(), keep=st.booleans())
    def deliver_ack(self, data: st.DataObject, keep: bool) -> None:  # noqa: FBT001 - drawn
        index = data.draw(st.integers(0, len(self.down) - 1))
        ack = self.down[index] if keep else self.down.pop(index)
        self.edge.execute(self.edge.sender.receive(ack, self.now_ms), self.now_ms)
        self.take_sent()

    @rule()
    def lose_everything_in_flight(self) -> None:
        self.up.clear()
        self.down.clear()

    @rule()
    def reconnect(self) -> None:
        self.edge.sender.disconnected()
        self.edge.execute(self.edge.sender.connected(self.now_ms), self.now_ms)
        self.take_sent()

    @invariant()
    def merged_once_and_in_order(self) -> None:
        assert self.merged == list(range(1, len(self.merged) + 1))

    @invariant()
    def the_sender_never_believes_more_than_is_committed(self) -> None:
        assert self.edge.sender.acked_frame <= self.committed.frame

    @invariant()
    def the_window_is_never_exceeded(self) -> None:
        assert self.edge.sender.in_flight <= LIMITS.window_frames_max

    def teardown(self) -> None:
        """Once the network behaves, everything arrives: no state is a dead end."""
        for _ in range(200):
            self.now_ms += 30_000
            self.edge.execute(self.edge.sender.tick(self.now_ms), self.now_ms)
            waiting = self.edge.entries - self.edge.source
            self.edge.execute(self.edge.sender.waiting(waiting, 0, self.now_ms), self.now_ms)
            for frame in self.edge.sent:
                receiver = Receiver("gw", "ledger", EPOCH, self.committed)
                if receiver.offer(*self.edge.chain[frame - 1]) is Verdict.MERGE:
                    self.merged.append(frame)
                    self.committed = receiver.cursor
                self.down.append(receiver.ack(self.now_ms, 4))
            self.edge.sent.clear()
            while self.down:
                self.edge.execute(self.edge.sender.receive(self.down.pop(0), self.now_ms), self.now_ms)
            if self.committed.seq == self.edge.entries == self.edge.source and not self.edge.sent:
                break
        assert self.committed.seq == self.edge.entries
        assert self.edge.sender.acked_frame == len(self.edge.chain)


TestLink = Link.TestCase
TestLink.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def chain(length: int, gateway: str = "gw") -> list[tuple[FrameHeader, str]]:
    """A chain of one-entry frames."""
    made: list[tuple[FrameHeader, str]] = []
    for frame in range(1, length + 1):
        prev = made[-1][1] if made else frames.genesis(gateway, EPOCH, "ledger")
        header = FrameHeader(stream="ledger", epoch=EPOCH, frame=frame, first_seq=frame, count=1, prev=prev)
        made.append((header, frames.digest(f"{{{gateway}{frame}}}".encode())))
    return made


def ack(frame: int, *, window: int = 16, want: int | None = None, fork: str | None = None) -> Ack:
    """An acknowledgement."""
    return Ack(stream="ledger", epoch=EPOCH, frame=frame, seq=frame, now_ms=0, window=window, want=want, fork=fork)


def sender(sealed: int, acked: int = 0) -> Sender:
    """A connected sender with sealed frames."""
    made = Sender("ledger", EPOCH, sealed=sealed, acked=acked, limits=LIMITS)
    made.connected(0)
    return made


def test_a_cloud_that_fell_back_gets_its_frames_again() -> None:
    """A stale replica took over: what it had not received is sent again from retention."""
    edge = sender(sealed=9, acked=9)
    effects = edge.receive(ack(5, want=6), 10)
    assert effects == [SteppedBack(5), Send(6), Send(7), Send(8), Send(9)]


def test_an_ask_that_a_broker_held_back_for_hours_is_not_a_cloud_that_fell_back() -> None:
    """It would step the sender back to frames that are no longer kept; the simulator found that it could."""
    edge = sender(sealed=9, acked=9)
    edge.receive(ack(9).model_copy(update={"now_ms": 7_200_000}), 10)
    assert edge.receive(ack(5, want=6), 20) == []
    assert edge.acked_frame == 9
    fell_back = ack(5, want=6).model_copy(update={"now_ms": 7_199_000})
    assert edge.receive(fell_back, 30)[0] == SteppedBack(5)


def test_an_old_acknowledgement_without_want_changes_nothing() -> None:
    """Acknowledgements are repeated and reordered by brokers all the time."""
    edge = sender(sealed=9, acked=9)
    assert edge.receive(ack(5), 10) == []
    assert edge.acked_frame == 9


def test_a_gap_is_filled_once_however_often_it_is_reported() -> None:
    """Every frame of a window reports the same gap; answering each would multiply the traffic."""
    edge = sender(sealed=4)
    assert edge.receive(ack(1, want=2), 10) == [Acked(1), Send(2), Send(3), Send(4)]
    assert edge.receive(ack(1, want=2), 11) == []
    assert edge.receive(ack(1, want=2), 500) == [Send(2), Send(3), Send(4)]


def test_the_clouds_answer_to_a_new_contact_does_not_double_the_window() -> None:
    """Every contact begins with frames on their way and a cloud that asks for them."""
    edge = sender(sealed=4)
    assert edge.receive(ack(0, want=1), 10) == []
    assert edge.receive(ack(0, want=1), 200) == [Send(1), Send(2), Send(3), Send(4)]


def test_a_timeout_probes_with_one_frame() -> None:
    """A hundred gateways coming back at once must not send a hundred windows twice."""
    edge = sender(sealed=4)
    assert edge.tick(100) == [Send(1)]
    assert edge.tick(250) == []
    assert edge.tick(300) == [Send(1)]
    assert edge.receive(ack(4), 310) == [Acked(4)]


def test_a_closed_window_is_probed_and_not_forgotten() -> None:
    """The acknowledgement that opens a window may be lost; a gateway that waits for it forever never ships again."""
    edge = sender(sealed=2)
    edge.receive(ack(1, window=0), 10)
    assert edge.tick(50) == []
    assert edge.tick(5_000) == [Send(2)]


@pytest.mark.parametrize("told", [ack(0, fork="another history"), ack(5)])
def test_a_fork_stops_the_sender(told: Ack) -> None:
    """A gateway restored from a backup must not go on as if nothing had happened."""
    edge = sender(sealed=3)
    assert isinstance(edge.receive(told, 10)[0], Forked)
    assert edge.tick(10_000) == []
    assert edge.forked


def test_acknowledgements_of_another_epoch_are_ignored() -> None:
    """They belong to the ledger that was here before."""
    edge = sender(sealed=3)
    assert edge.receive(ack(2).model_copy(update={"epoch": OTHER_EPOCH}), 10) == []
    assert edge.acked_frame == 0


def test_frames_are_sealed_one_after_the_other() -> None:
    """A frame sealed behind the sender's back would be sent in the wrong place."""
    edge = sender(sealed=3)
    with pytest.raises(WireError, match="after frame 3"):
        edge.sealed(5, 0, 0)
    with pytest.raises(WireError, match="acknowledged"):
        Sender("ledger", EPOCH, sealed=1, acked=2)


def test_the_receiver_tells_forks_from_repetitions() -> None:
    """A repetition is harmless; another history under the same numbers is not."""
    ours, cloned = chain(4), chain(4, gateway="clone")
    receiver = Receiver("gw", "ledger", EPOCH, NO_CURSOR)
    assert [receiver.offer(*frame) for frame in ours[:3]] == [Verdict.MERGE] * 3
    assert receiver.offer(*ours[1]) is Verdict.DUPLICATE
    assert receiver.offer(*ours[2]) is Verdict.DUPLICATE
    assert receiver.ack(0, 1).fork is None
    assert receiver.offer(*cloned[2]) is Verdict.FORK
    assert receiver.ack(0, 1).fork is not None
    assert Receiver("gw", "ledger", EPOCH, receiver.cursor).offer(*cloned[3]) is Verdict.FORK
    skipped = ours[3][0].model_copy(update={"first_seq": 9})
    assert Receiver("gw", "ledger", EPOCH, receiver.cursor).offer(skipped, "0" * 64) is Verdict.FORK


def test_the_first_frame_must_begin_the_chain() -> None:
    """Otherwise a gateway could be given the history of another."""
    assert Receiver("other", "ledger", EPOCH, NO_CURSOR).offer(*chain(1)[0]) is Verdict.FORK


def test_another_history_under_the_same_numbers_is_found_before_it_is_believed() -> None:
    """A restored gateway that has sealed as many frames as the cloud has would take its own for durable."""
    ours, digests = chain(4), {number: f"{number}" * 64 for number in range(1, 5)}
    edge = Sender("ledger", EPOCH, sealed=4, acked=1, limits=LIMITS, digest_of=digests.get)
    edge.connected(0)
    told = Receiver("gw", "ledger", EPOCH, Cursor(3, 3, ours[2][1])).ack(0, 16, ask=True)
    assert edge.receive(told, 10) == [Forked(ForkCode.OTHER_FRAME.says("the cloud has another frame 3"))]
    assert edge.acked_frame == 1


def test_a_new_epoch_must_know_the_older_ones() -> None:
    """Anyone who replaces a gateway without its history would take what devices send again for new."""
    first, digest = chain(1)[0]
    older = {OTHER_EPOCH: Cursor(7, 70, "a" * 64)}

    def judged(**after: LogHead) -> Verdict:
        header = first.model_copy(update={"after": after})
        return Receiver("gw", "ledger", EPOCH, NO_CURSOR, older).offer(header, digest)

    assert judged() is Verdict.FORK
    assert judged(**{OTHER_EPOCH: LogHead(frame=7, digest="b" * 64)}) is Verdict.FORK
    assert judged(**{OTHER_EPOCH: LogHead(frame=7, digest="a" * 64)}) is Verdict.MERGE
    assert judged(**{OTHER_EPOCH: LogHead(frame=6, digest="c" * 64)}) is Verdict.MERGE, "the older log went on since"


def test_a_gap_is_asked_for_and_verdicts_are_told() -> None:
    """Anyone who lost a frame must learn which."""
    receiver = Receiver("gw", "ledger", EPOCH, Cursor(1, 1, chain(1)[0][1]))
    assert receiver.offer(*chain(3)[2]) is Verdict.AHEAD
    told = receiver.ack(7, 3, rejected=[Rejected(seq=1, reason="no")])
    assert (told.want, told.window, told.now_ms, told.rejected[0].reason) == (2, 3, 7, "no")
    assert Receiver("gw", "ledger", EPOCH, NO_CURSOR).ack(0, 1, ask=True).want == 1

"""Production's shipping with a trace: what it does is its own, what it does is noted, and looked at by the checks."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from command_line.version import version
from edge_agent.ledger import outbox, streams
from edge_agent.ledger.ledger import Ledger
from edge_agent.link.shipping import TIME_WAIT_MS, Shipping, StreamState
from edge_agent.link.site_sync import SiteSync
from simulation.edge.host import Host
from wire_protocol import frames
from wire_protocol.frames import Frame
from wire_protocol.messages import Ack, GatewayStatus, StreamStatus
from wire_protocol.replication import Effect, Verdict
from wire_protocol.site_messages import SiteFrame
from wire_protocol.topics import STREAMS, Stream

VERSION: Final = version()

# Every gateway of a site and the cloud decode the same frames; a frame is never changed by who reads it.
decoded = lru_cache(4_096)(frames.decode)


def status(ledger: Ledger, *, arrived: bool) -> GatewayStatus:
    """What a gateway announces."""
    at = {stream: streams.position(ledger.connection, stream) for stream in STREAMS}
    shown: dict[Stream, StreamStatus] = {
        stream: StreamStatus(
            last_seq=place.sealed_seq,
            sealed_frame=place.sealed_frame,
            acked_frame=place.acked_frame,
            acked_seq=place.acked_seq,
        )
        for stream, place in at.items()
    }
    return GatewayStatus(state="online", epoch=ledger.epoch, arrived=arrived, version=VERSION, streams=shown)


class NotedShipping(Shipping):
    """One machine's shipping."""

    machine: Host

    async def _execute(self, stream_state: StreamState, effects: list[Effect]) -> None:
        await super()._execute(stream_state, effects)
        self.machine.world.checks.in_flight(self.machine.name, stream_state.sender)

    async def acknowledged(self, ack: Ack) -> None:
        sender = self.stream_states[ack.stream].sender
        stopped = sender.forked
        ours = outbox.digest(self.reader, ack.stream, ack.frame)
        await super().acknowledged(ack)
        if ours is None or ack.digest is None or ack.epoch != self.epoch:
            return
        checks = self.machine.world.checks
        if ours != ack.digest:
            checks.shown_another(self.machine, ack, stopped=sender.forked is not None)
        elif sender.forked and sender.forked == ack.fork != stopped:
            # A clone hears the same acknowledgements: what is said of a fork is meant for whose frame it is not.
            checks.accused(self.machine, sender.forked)

    async def _learn_time(self, ack: Ack) -> None:
        boot, late_ms, zero_ms = self.clock.boot, self.machine.world.now_ms - ack.now_ms, self._zero_ms
        await super()._learn_time(ack)
        if self._zero_ms != zero_ms:
            self.machine.world.checks.taught(boot, late_ms)

    async def _take_verdicts(self, ack: Ack) -> None:
        if ack.rejected:
            self.machine.note(f"hears that {len(ack.rejected)} entries do not count")
        await super()._take_verdicts(ack)

    async def _seal(self, stream_state: StreamState, entries_max: int) -> list[Effect]:
        stream = stream_state.sender.stream
        before = streams.position(self.reader, stream)
        effects = await super()._seal(stream_state, entries_max)
        waited_ms = self.clock.mono_ms() - (self.contact_ms or 0)
        if waited_ms >= TIME_WAIT_MS and not outbox.time_known(self.reader, self.clock.boot):
            self.machine.world.checks.untimed(self.clock.boot)
        after = streams.position(self.reader, stream)
        if after.sealed_frame > before.sealed_frame:
            entries = after.sealed_seq - before.sealed_seq
            self.machine.note(f"seals {stream} frame {after.sealed_frame}, {entries} entries")
        return effects

    async def _step_back(self, stream: Stream, frame: int) -> None:
        self.machine.note(f"steps back to {stream} frame {frame}")
        await super()._step_back(stream, frame)

    async def _fork(self, stream: Stream, reason: str) -> None:
        self.machine.note(f"stops {stream}: {reason}")
        self.machine.world.checks.forked(self.machine, reason)
        await super()._fork(stream, reason)


class NotedSiteSync(SiteSync):
    """One machine's view of its site."""

    machine: Host

    async def _receive(self, message: SiteFrame, frame: Frame) -> Verdict:
        verdict = await super()._receive(message, frame)
        log = f"{message.gateway} {frame.header.epoch[-4:]}"
        if verdict is Verdict.MERGE:
            self.machine.note(f"books frame {frame.header.frame} of {log}")
        elif verdict is Verdict.FORK:
            self.machine.note(f"has another log {log} than the cloud")
        return verdict

    async def _stage(self, *, from_start: bool) -> None:
        self.machine.note(f"stages its own log from the {'start' if from_start else 'last shared frame'}")
        await super()._stage(from_start=from_start)

    async def _forget(self, logs: Sequence[int]) -> None:
        self.machine.note(f"fetches {len(logs)} logs anew")
        await super()._forget(logs)

"""The merge loop: arrivals are read, batches of them become commits, commits become acknowledgements.

While the database is away the batch in hand is tried again and again, the gateways of its frames get a window of
zero, and nothing is acknowledged. A batch that keeps failing while the database answers other questions is taken apart
down to the frame at fault, which is quarantined; one that takes too long goes to the slow lane (`slow_lane`).

`MergeLoop.merge` waits for nothing but `merge_frames` and the context, so that the simulator drives it on virtual time.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from cloud_ingest.context import Context
from cloud_ingest.inbound import Inbound
from cloud_ingest.merge.answers import Answer, Answers
from cloud_ingest.merge.denylist import Denylist, Strikes
from cloud_ingest.merge.inbox import Inbox, window
from cloud_ingest.merge.lanes import MergeFrames, MergeLane, MergeLanes
from cloud_ingest.merge.slow_lane import Pace, SlowLane
from cloud_ingest.merge.throttle import Throttle
from cloud_store.base import gateways
from cloud_store.base.connection import answers
from cloud_store.base.errors import NamesExhausted, StoreError, StoreTimeout, Unstorable
from cloud_store.merge import dead_letters
from cloud_store.merge.arrivals import ArrivedFrame, LogKey, MergedFrame, MergeReport
from cloud_store.merge.dead_letters import DeadLetter, LetterKind
from cloud_store.tenancy import quotas
from wire_protocol import topics
from wire_protocol.errors import InvalidFrame
from wire_protocol.topics import Channel

RETRY_DELAY_S: Final = 0.1
RETRY_DELAY_S_MAX: Final = 2.0
QUARANTINE_QUIET_S: Final = 300.0  # a frame that no merge can stand costs the database much each time
ATTEMPTS_MAX: Final = 3  # of a batch, each after the database answered another question, before it is taken apart
_LOG = structlog.get_logger()


class TooSlow(Exception):
    """The database is there and did not finish a batch in the time that the fast lane allows."""


class BadFrames(Exception):
    """A gateway sends one frame after the other that cannot be used; it is not listened to for a while."""


class MergeLoop:
    """Takes from the inbox, merges, answers.

    Args:
        context: what all services stand on.
        inbox: where arrivals wait.
        merge_frames: merges a batch in one transaction.
        more_lanes: the same, each on a connection of its own; sites are distributed among all.
        merge_apart: the same on another connection, with more time; absent, there is no slow lane.
        merged: called with the ledger frames of each commit.
        acknowledged: called with the logs of each commit.
    """

    def __init__(
        self,
        context: Context,
        *,
        inbox: Inbox,
        merge_frames: MergeFrames,
        more_lanes: Sequence[MergeFrames] = (),
        merge_apart: MergeFrames | None = None,
        merged: Callable[[Sequence[MergedFrame]], None] = lambda _: None,
        acknowledged: Callable[[Iterable[LogKey]], None] = lambda _: None,
    ) -> None:
        self._context, self._settings, self._metrics = context, context.settings, context.metrics
        self._inbox, self._merged, self._acknowledged = inbox, merged, acknowledged
        self._lanes = MergeLanes(
            [merge_frames, *more_lanes],
            context.settings.batch_frames_max,
            lambda names: context.database.run(gateways.named, names),
        )
        self._merge_apart = merge_apart
        self._slow_lane: SlowLane | None = None
        self._pace = Pace()
        if merge_apart is not None:
            merge = partial(self._merge_in_time, merge_apart)
            self._slow_lane = SlowLane(merge, self._settle, self._pace, context.mono_s)
        self._answers = Answers()
        self.throttle = Throttle(
            lambda spent: context.database.run(quotas.charge, spent), self._release, context.mono_s
        )
        settings = context.settings
        self._denylist = Denylist(quiet_s=settings.refusal_quiet_s, gateways_max=settings.refused_gateways_max)
        self._strikes = Strikes(settings.bad_frames_per_minute_max, gateways_max=settings.refused_gateways_max)
        self._idle = asyncio.Event()
        self._idle.set()
        self._unsettled = 0

    @property
    def window(self) -> int:
        """How many frames a gateway may have in flight now."""
        if self._answers.is_stalled:
            return 0
        # Long before the queue is full, waiting in it would outlast the gateways' resend timers.
        fill = max(self._inbox.fill, len(self._inbox) / self._settings.inbox_frames_target)
        return window(fill, self._settings.window_frames_max)

    def window_of(self, log: LogKey) -> int:
        """The window of one log: that of all, or less when its tenant is above its quota."""
        return self.throttle.window(log, self.window)

    def offer(self, inbound: Inbound) -> bool:
        """A frame arrived. Without room it is not taken, and so not acknowledged. Returns whether it was taken."""
        if self._denylist.covers(inbound.sender, self._context.mono_s()):
            self._metrics.frames.labels("refused").inc()
            return False
        if (outcome := self._inbox.offer(inbound)) != "taken":
            self._metrics.frames.labels(outcome).inc()
            return False
        self._unsettled += 1
        self._idle.clear()
        return True

    async def drained(self) -> None:
        """Wait until everything that arrived is merged and answered."""
        await self._idle.wait()

    async def run(self) -> None:
        """Merge until cancelled; a merge that has begun is finished.

        What arrives while the database is at work is read meanwhile.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_all(), name="ingest.reading")
            for number, lane in enumerate(self._lanes):
                group.create_task(self._merge_lane(lane), name=f"ingest.lane[{number}]")
            group.create_task(self.throttle.run(self._context.failed), name="ingest.throttle")
            if self._slow_lane is not None:
                group.create_task(self._slow_lane.run(), name="ingest.slow_lane")

    async def merge(self, batch: Sequence[ArrivedFrame], lane: MergeLane | None = None) -> None:
        """Merge a batch, in the first lane or another, and answer its gateways, however long the database is away.

        Raises:
            TooSlow: the database did not finish it in time, and there is a slow lane for it.
        """
        seconds = await self._merge_in_time((lane or self._lanes[0]).merge, batch)
        if self._slow_lane is not None and self._pace.is_slow(batch, seconds):
            self._slow_lane.suspect(batch)
        self._pace.learn(batch, seconds)

    async def _merge_in_time(self, merge_frames: MergeFrames, batch: Sequence[ArrivedFrame]) -> float:
        """As `merge`, in one of the lanes. Returns how many seconds the merge that succeeded took."""
        delay_s, failures, answered = RETRY_DELAY_S, 0, False
        fast = merge_frames is not self._merge_apart
        while True:
            began = self._context.mono_s()
            try:
                report = await merge_frames(batch)
            except NamesExhausted as error:
                isolated = await self._isolate(merge_frames, batch, error)
            except StoreError as error:
                self._metrics.merge_failures.inc()
                _LOG.warning("merge_failed", frames=len(batch), reason=str(error), hint=error.hint)
                if fast and self._slow_lane is not None and isinstance(error, StoreTimeout):
                    raise TooSlow from error
                # An attempt counts against the batch only if the database was there before it: one that began in an
                # outage says nothing about the frames, even when the database has come back since.
                failures += answered
                isolated = await self._isolate(merge_frames, batch, error) if failures >= ATTEMPTS_MAX else None
            except Exception as error:  # noqa: BLE001 - a defect of ours must not stop every other gateway's merge
                isolated = await self._isolate(merge_frames, batch, error)
            else:
                seconds = self._context.mono_s() - began
                self._report_guarded(batch, report, seconds)
                return seconds
            if isolated is not None:
                return isolated
            if fast:
                self._publish(self._answers.stall(batch, self._context.now_ms()))
            await self._context.pause(delay_s)
            delay_s = min(RETRY_DELAY_S_MAX, delay_s * 2)
            answered = await self._database_answers()

    async def _database_answers(self) -> bool:
        """Whether the database answers another question, on another connection."""
        try:
            await self._context.database.run(answers)
        except StoreError:
            return False
        return True

    async def _isolate(
        self, merge_frames: MergeFrames, batch: Sequence[ArrivedFrame], error: Exception
    ) -> float | None:
        """Find the frame that a merge cannot stand: it is quarantined and not acknowledged, the others are merged.

        Its gateway is not listened to for a while: it sends the frame again, and it would cost as much again.

        Returns how many seconds the merges took. None when the database does not take the dead letter either: a full
        disk answers questions, and is no fault of the frame.
        """
        if len(batch) == 1:
            arrived = batch[0]
            reason = f"the merge failed: {type(error).__name__}: {error}"
            letter = DeadLetter(LetterKind.FRAME, arrived.gateway, arrived.topic, reason, arrived.payload)
            if not await self._stored([letter]):
                return None
            self._note_bad([letter])
            self._context.failed("merge", arrived.gateway, error)
            self._denylist.add(arrived.gateway, self._context.mono_s(), QUARANTINE_QUIET_S)
            return 0.0
        halves = (batch[: len(batch) // 2], batch[len(batch) // 2 :])
        return sum([await self._merge_in_time(merge_frames, half) for half in halves])

    async def _read_all(self) -> None:
        frames_max = self._settings.batch_frames_max
        while True:
            await self._inbox.wait()
            if len(self._inbox) < frames_max:
                # Frames of many gateways arrive together; a moment's wait makes one commit of them.
                await asyncio.sleep(self._settings.batch_delay_ms / 1000)
            self._metrics.inbox_fill.set(self._inbox.fill)
            arrivals = self._inbox.take(frames_max, self._lanes.is_full_for)
            if not arrivals:
                await self._lanes.room()
                continue
            read, letters = await asyncio.to_thread(self._decode, arrivals)
            if letters:
                await self._quarantine(letters)
                self.settle([(letter.gateway or "", letter.payload) for letter in letters])
            await self._lanes.add(read)

    def _decode(self, arrivals: list[Inbound]) -> tuple[list[ArrivedFrame], list[DeadLetter]]:
        """In a thread: read payloads as far as they will be needed, so that the merge finds it done."""
        decoded, letters = decode(arrivals)
        for arrived in decoded:
            # One that cannot be validated for a reason nobody thought of is found by the merge, alone.
            with suppress(Exception):
                if not self._answers.is_merged(arrived.log, arrived.frame.header.frame):
                    arrived.entries()
        return decoded, letters

    async def _merge_lane(self, lane: MergeLane) -> None:
        while True:
            read = await lane.take()
            if self._slow_lane is not None:
                read = self._slow_lane.sort_out(read)
            for batch in split(read, self._settings.batch_entries_max):
                try:
                    await self.merge(batch, lane)
                except TooSlow:
                    assert self._slow_lane is not None  # noqa: S101 - only then it is raised
                    self._slow_lane.move_in(batch)
                else:
                    self._settle(batch)

    def _settle(self, batch: Sequence[ArrivedFrame]) -> None:
        self.settle([(arrived.gateway, arrived.payload) for arrived in batch])

    def settle(self, taken: list[tuple[str, bytes]]) -> None:
        """Of what was taken these are dealt with, by gateway and payload."""
        self._inbox.settled(taken)
        self._unsettled -= len(taken)
        if not self._unsettled:
            self._idle.set()

    async def _quarantine(self, letters: list[DeadLetter]) -> None:
        """What is not stored as a dead letter is not acknowledged: it comes again and is quarantined then."""
        self._note_bad(letters)
        await self._stored(letters)

    def _note_bad(self, letters: list[DeadLetter]) -> None:
        self._metrics.frames.labels("undecodable").inc(len(letters))
        _LOG.warning("frames_undecodable", frames=len(letters), gateway=letters[0].gateway, reason=letters[0].reason)
        for letter in letters:
            self._strike(letter.gateway or "", 1)

    async def _stored(self, letters: list[DeadLetter]) -> bool:
        """Store dead letters. Returns False when the database takes none now, whatever they say."""
        try:
            await self._context.database.run(dead_letters.add, letters)
        except Exception as error:  # noqa: BLE001 - a letter that cannot be stored must not stop every gateway's merge
            _LOG.warning("quarantine_failed", gateway=letters[0].gateway, reason=str(error))
            return not isinstance(error, StoreError) or isinstance(error, Unstorable)
        return True

    def _strike(self, gateway: str, frames: int) -> None:
        """A gateway sent frames that cannot be used; after too many of them it is not listened to for a while."""
        now_s = self._context.mono_s()
        if self._strikes.exceeded(gateway, frames, now_s) and not self._denylist.covers(gateway, now_s):
            self._denylist.add(gateway, now_s)
            per_minute = self._settings.bad_frames_per_minute_max
            self._context.failed("merge", gateway, BadFrames(f"more than {per_minute} bad frames in a minute"))

    def _report_guarded(self, batch: Sequence[ArrivedFrame], report: MergeReport, seconds: float) -> None:
        """Answer what was merged. What goes wrong in it costs this batch its answers, and no process."""
        try:
            self._report(batch, report, seconds)
        except Exception as error:  # noqa: BLE001 - committed and not acknowledged: it comes again, as a repetition
            self._context.failed("merge", None, error)

    def _report(self, batch: Sequence[ArrivedFrame], report: MergeReport, seconds: float) -> None:
        self.throttle.merged(report)
        if self._slow_lane is not None:
            self._slow_lane.note_late(report.late_counts)
        now_ms = self._context.now_ms()
        self._publish(self._answers.merged(report, now_ms, self.window_of))
        self._acknowledged(report.streams)
        for gateway in report.refused:
            self._denylist.add(gateway, self._context.mono_s())
        for gateway, frames in report.forked.items():
            self._strike(gateway, frames)
        self._merged(report.merged)
        self._metrics.merged(report, seconds)
        _log(batch, report, seconds, now_ms, self.window)

    def _release(self, logs: Sequence[LogKey], frames: int) -> None:
        """Part of `Throttle`."""
        self._publish(self._answers.release(logs, self._context.now_ms(), min(frames, self.window)))

    def _publish(self, answers: Iterable[Answer]) -> None:
        for log, ack in answers:
            self._context.publish(topics.link(log.gateway, Channel.ACK), ack.encode())


def decode(arrivals: Iterable[Inbound]) -> tuple[list[ArrivedFrame], list[DeadLetter]]:
    """Decode payloads; those that are no frames of their stream become dead letters."""
    decoded: list[ArrivedFrame] = []
    letters: list[DeadLetter] = []
    for inbound in arrivals:
        try:
            decoded.append(_decode(inbound))
        except Exception as error:  # noqa: BLE001 - what no decoder of ours expects is a bad frame as well
            reason = str(error) if isinstance(error, InvalidFrame) else f"{type(error).__name__}: {error}"
            letters.append(DeadLetter(LetterKind.FRAME, inbound.sender, inbound.topic, reason, inbound.payload))
    return decoded, letters


def _decode(inbound: Inbound) -> ArrivedFrame:
    stream = inbound.stream
    read = ArrivedFrame.read(inbound.sender, stream, inbound.payload, inbound.received_ms, topic=inbound.topic)
    if read.frame.header.stream != stream:
        raise InvalidFrame(f"A frame of {read.frame.header.stream} on the topic of {stream}.")
    return read


def split(batch: list[ArrivedFrame], entries_max: int) -> Iterator[list[ArrivedFrame]]:
    """Cut a batch into transactions of bounded size."""
    part: list[ArrivedFrame] = []
    entries = 0
    for arrived in batch:
        if part and entries + arrived.frame.header.count > entries_max:
            yield part
            part, entries = [], 0
        part.append(arrived)
        entries += arrived.frame.header.count
    if part:
        yield part


def _log(batch: Sequence[ArrivedFrame], report: MergeReport, seconds: float, now_ms: int, room: int) -> None:
    _LOG.info(
        "frame_batch_merged",
        frames=report.frames,
        entries=report.entries,
        rejected=report.rejected,
        duplicate=report.duplicates,
        ahead=report.ahead,
        forks=report.forks,
        refused=sorted(report.refused)[:5],
        retries=report.retries,
        merge_s=round(seconds, 4),
        lag_s=round((now_ms - min(arrived.received_ms for arrived in batch)) / 1000, 3),
        window=room,
    )

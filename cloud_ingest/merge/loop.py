"""The merge loop: arrivals are read, batches of them become commits, commits become acknowledgements.

While the database is away the batch in hand is tried again and again, every gateway heard from is told a window of
zero, and nothing is acknowledged.

Invariant: an acknowledgement is built only from the report of a committed merge, or repeats an older one.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

import structlog

from cloud_ingest.inbound import Arrival
from cloud_ingest.merge.denylist import Refusals
from cloud_ingest.merge.inbox import Inbox, window
from cloud_ingest.merge.throttle import Charging, Pacing
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
from cloud_ingest.threads import uninterrupted
from cloud_store.base.errors import StoreError
from cloud_store.merge.arrivals import ArrivedFrame, LogKey, MergedFrame, MergeReport
from cloud_store.merge.batch import Merger
from cloud_store.merge.dead_letters import DeadLetter
from cloud_store.merge.presence import ContactStore
from wire_protocol import topics
from wire_protocol.errors import InvalidFrame
from wire_protocol.messages import Ack
from wire_protocol.replication import Receiver
from wire_protocol.topics import Channel

RETRY_DELAY_S: Final = 0.1
RETRY_DELAY_S_MAX: Final = 2.0
STREAMS_REMEMBERED_MAX: Final = 50_000
_LOG = structlog.get_logger()


class Publishing(Protocol):
    """Where acknowledgements go."""

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish a payload, without waiting."""


class Merging:
    """Takes from the inbox, merges in a thread, answers."""

    def __init__(
        self,
        settings: IngestSettings,
        *,
        inbox: Inbox,
        merger: Merger,
        letters: ContactStore,
        link: Publishing,
        metrics: WorkerMetrics,
        quotas: Charging,
        merged: Callable[[Sequence[MergedFrame]], None] = lambda _: None,
        acknowledged: Callable[[Iterable[LogKey]], None] = lambda _: None,
    ) -> None:
        self._settings, self._inbox, self._merger, self._letters = settings, inbox, merger, letters
        self._link, self._metrics, self._merged, self._acknowledged = link, metrics, merged, acknowledged
        self.pacing = Pacing(quotas, self._let_on)
        self._refusals = Refusals(quiet_s=settings.refusal_quiet_s, gateways_max=settings.refused_gateways_max)
        # The last receiver of each stream: what a gateway is told while the database is away.
        self._last: dict[LogKey, Receiver] = {}
        self._stalled: set[LogKey] = set()
        # Frames that were read and wait for the merge in hand; never more than a batch.
        self._read: list[ArrivedFrame] = []
        self._ready, self._room, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._room.set()
        self._idle.set()
        self._unsettled = 0

    @property
    def window(self) -> int:
        """How many frames a gateway may have in flight now."""
        if self._stalled:
            return 0
        # Long before the queue is full, waiting in it would outlast the gateways' resend timers.
        fill = max(self._inbox.fill, len(self._inbox) / self._settings.inbox_frames_target)
        return window(fill, self._settings.window_frames_max)

    def window_of(self, log: LogKey) -> int:
        """The window of one log: that of all, or less when its tenant is above its quota."""
        return self.pacing.window(log, self.window)

    def offer(self, arrival: Arrival) -> bool:
        """A frame arrived. Without room it is not taken, and so not acknowledged. Returns whether it was taken."""
        if self._refusals.covers(arrival.gateway, time.monotonic()):
            self._metrics.frames.labels("refused").inc()
            return False
        if (outcome := self._inbox.offer(arrival)) != "taken":
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
            group.create_task(self._merge_all(), name="ingest.merging")
            group.create_task(self.pacing.run(), name="ingest.pacing")

    async def _read_all(self) -> None:
        frames_max = self._settings.batch_frames_max
        while True:
            await self._inbox.wait()
            await self._room.wait()
            if len(self._inbox) < frames_max:
                # Frames of many gateways arrive together; a moment's wait makes one commit of them.
                await asyncio.sleep(self._settings.batch_delay_ms / 1000)
            self._metrics.inbox_fill.set(self._inbox.fill)
            arrivals = self._inbox.take(frames_max - len(self._read))
            read, letters = await uninterrupted(lambda: self._decode(arrivals))  # noqa: B023 - awaited in this iteration
            if letters:
                await self._quarantine(letters)
                self._settle([(letter.gateway or "", letter.payload) for letter in letters])
            self._read += read
            if self._read:
                self._ready.set()
            if len(self._read) >= frames_max:
                self._room.clear()

    def _decode(self, arrivals: list[Arrival]) -> tuple[list[ArrivedFrame], list[DeadLetter]]:
        """In a thread: read payloads as far as they will be needed, so that the merge finds it done."""
        decoded, letters = decode(arrivals)
        for arrived in decoded:
            last = self._last.get(arrived.log)
            if last is None or arrived.frame.header.frame > last.cursor.frame:
                arrived.validated()
        return decoded, letters

    async def _merge_all(self) -> None:
        while True:
            await self._ready.wait()
            self._ready.clear()
            read, self._read = self._read, []
            self._room.set()
            for batch in _split(read, self._settings.batch_entries_max):
                await self._merge(batch)
                self._settle([(arrived.gateway, arrived.payload) for arrived in batch])

    def _settle(self, taken: list[tuple[str, bytes]]) -> None:
        """Of what was taken these are dealt with, by gateway and payload."""
        self._inbox.settled(taken)
        self._unsettled -= len(taken)
        if not self._unsettled:
            self._idle.set()

    async def _quarantine(self, letters: list[DeadLetter]) -> None:
        self._metrics.frames.labels("undecodable").inc(len(letters))
        _LOG.warning("frames_undecodable", frames=len(letters), gateway=letters[0].gateway, reason=letters[0].reason)
        try:
            await uninterrupted(lambda: self._letters.quarantine(letters))
        except StoreError as error:
            # Not acknowledged, so the gateway sends it again and it is quarantined then.
            _LOG.warning("quarantine_failed", reason=str(error), hint=error.hint)

    async def _merge(self, batch: list[ArrivedFrame]) -> None:
        delay_s = RETRY_DELAY_S
        while True:
            began = time.monotonic()
            try:
                report = await uninterrupted(lambda: self._merger.merge(batch))
            except StoreError as error:
                self._metrics.merge_failures.inc()
                _LOG.warning("merge_failed", frames=len(batch), reason=str(error), hint=error.hint)
                self._stall(batch)
                await asyncio.sleep(delay_s)
                delay_s = min(RETRY_DELAY_S_MAX, delay_s * 2)
            else:
                self._report(batch, report, time.monotonic() - began)
                return

    def _stall(self, batch: list[ArrivedFrame]) -> None:
        """Tell every gateway of the batch, once, to hold its frames."""
        for key in {arrived.log for arrived in batch} - self._stalled:
            self._stalled.add(key)
            if key in self._last:
                self._answer(key, self._last[key].ack(_now_ms(), 0))

    def _report(self, batch: list[ArrivedFrame], report: MergeReport, seconds: float) -> None:
        waiting, self._stalled = self._stalled - report.streams.keys(), set()
        now_ms, room = _now_ms(), self.window
        self.pacing.merged(report)
        for key, outcome in report.streams.items():
            receiver = outcome.receiver
            told = self.pacing.window(key, room)
            for ack in receiver.acks(now_ms, told, rejected=outcome.rejected, bounded=outcome.bounded, ask=False):
                self._answer(key, ack)
            self._remember(key, outcome.receiver)
        self._acknowledged(report.streams)
        for key in waiting & self._last.keys():
            self._answer(key, self._last[key].ack(now_ms, self.pacing.window(key, room), ask=True))
        for gateway in report.refused:
            self._refusals.add(gateway, time.monotonic())
        self._merged(report.merged)
        self._metrics.merged(report, seconds)
        _log(batch, report, seconds, now_ms, room)

    def _let_on(self, logs: Sequence[LogKey], frames: int) -> None:
        """Tell gateways that were told to wait that they may send so many frames."""
        for log in logs:
            if log in self._last:
                self._answer(log, self._last[log].ack(_now_ms(), min(frames, self.window)))

    def _remember(self, key: LogKey, receiver: Receiver) -> None:
        self._last.pop(key, None)
        if len(self._last) >= STREAMS_REMEMBERED_MAX:
            del self._last[next(iter(self._last))]
        self._last[key] = receiver

    def _answer(self, key: LogKey, ack: Ack) -> None:
        self._link.publish(topics.link(key.gateway, Channel.ACK), ack.encode())


def decode(arrivals: list[Arrival]) -> tuple[list[ArrivedFrame], list[DeadLetter]]:
    """Decode payloads; those that are no frames of their stream become dead letters."""
    decoded: list[ArrivedFrame] = []
    letters: list[DeadLetter] = []
    for arrival in arrivals:
        try:
            decoded.append(_decode(arrival))
        except InvalidFrame as error:
            letters.append(DeadLetter("frame", arrival.gateway, arrival.topic, str(error), arrival.payload))
    return decoded, letters


def _decode(arrival: Arrival) -> ArrivedFrame:
    read = ArrivedFrame.read(arrival.gateway, arrival.stream, arrival.payload, arrival.received_ms, topic=arrival.topic)
    if read.frame.header.stream != arrival.stream:
        raise InvalidFrame(f"A frame of {read.frame.header.stream} on the topic of {arrival.stream}.")
    return read


def _split(batch: list[ArrivedFrame], entries_max: int) -> Iterator[list[ArrivedFrame]]:
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


def _log(batch: list[ArrivedFrame], report: MergeReport, seconds: float, now_ms: int, room: int) -> None:
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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

"""The site's other logs on the link: what is asked for, what comes, and what a ledger with another history makes of it.

The uplink owns the connection and the senders; this owns everything about logs that others have written. The decisions
are those of `wire_protocol.poll_timer` and `recovery`.

Invariant: a new epoch is opened only when everything that the cloud has of this gateway is here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from edge_agent.ledger import recovery
from edge_agent.ledger.database import Connection
from edge_agent.ledger.recovery import Opened, Recovery
from edge_agent.ledger.site_logs import SiteLogWriter, diverged_from_cloud
from edge_agent.ledger.writer import Write
from edge_agent.settings import EdgeSettings
from wire_protocol import frames
from wire_protocol.frames import Frame
from wire_protocol.poll_timer import PollTimer
from wire_protocol.reasons import ForkCode
from wire_protocol.replication import Verdict
from wire_protocol.site_messages import SITE_LOGS_MAX, LogCursor, SiteFrame, SiteHeads, SiteRequest

log = structlog.get_logger("edge_agent.link.uplink")


@dataclass(frozen=True, slots=True)
class CloudLost:
    """The cloud has lost entries of an older log of this gateway, for good: the ledger must bring them again."""

    reason: str = ForkCode.CLOUD_LOST.says("the cloud has lost entries of an older log of this gateway")


@dataclass(slots=True)
class SiteSync:
    """One ledger's view of its site.

    Args:
        gateway: whose ledger it is.
        reader: a read-only connection to it.
        write: hands a write to the ledger's writer and waits for it.
        settings: as everywhere.
        now_ms: the senders' time.
        decode: reads a frame.
    """

    gateway: str
    reader: Connection
    write: Write
    settings: EdgeSettings
    now_ms: Callable[[], int]
    decode: Callable[[bytes], Frame] = frames.decode
    epoch: str = ""
    complete: bool = False
    """Whether everything that the cloud has of the site was here at the last look."""
    heads: tuple[LogCursor, ...] = ()
    """Where the cloud had every log of the site at the last look."""
    timer: PollTimer = field(init=False)
    _lost_since_ms: int | None = None

    def __post_init__(self) -> None:
        self.timer = PollTimer(interval_ms=round(self.settings.site_ask_interval_s * 1_000))

    def connected(self, epoch: str) -> None:
        """A contact begins, in this epoch."""
        self.epoch = epoch
        self.timer.connected(self.now_ms())

    def question(self) -> SiteRequest | None:
        """What to ask the cloud now; None when nothing is due."""
        if not self.timer.due(self.now_ms()):
            return None
        logs = recovery.fetching(self.reader)
        return SiteRequest(own=None if self._staged(logs) else self.epoch, logs=tuple(logs[:SITE_LOGS_MAX]))

    def _staged(self, logs: Sequence[LogCursor]) -> bool:
        """Whether its own log is wanted: only while it is staged; what is not taken would be sent again and again."""
        return any((each.gateway, each.epoch) == (self.gateway, self.epoch) for each in logs)

    async def take(
        self, message: SiteFrame | SiteHeads, *, forked: bool, before_opening: Callable[[], None]
    ) -> Opened | CloudLost | None:
        """Take what the cloud has passed down.

        Args:
            message: a frame of another log, or the end of an answer.
            forked: the cloud refuses this ledger's own frames, so a new epoch is to be opened.
            before_opening: called when a new epoch is about to begin; nothing may be sealed after it.

        Returns:
            What has changed for this ledger's own log; mostly nothing.

        Raises:
            InvalidFrame: the frame is none.
        """
        if isinstance(message, SiteHeads):
            return await self._answered(message, forked=forked, before_opening=before_opening)
        frame = self.decode(message.frame)
        verdict = await self._receive(message, frame)
        if verdict is Verdict.MERGE:
            self.timer.taken()
        elif verdict is Verdict.AHEAD:
            self.timer.gap(self.now_ms())
        elif verdict is Verdict.FORK:
            log.error("site_log_forked", gateway=message.gateway, epoch=frame.header.epoch, frame=frame.header.frame)
            if (message.gateway, frame.header.epoch) == (self.gateway, self.epoch):
                # The frame that was thought to be shared is not: fetch the whole.
                await self._stage(from_start=True)
            self.timer.poll_now(self.now_ms())
        return None

    async def _receive(self, message: SiteFrame, frame: Frame) -> Verdict:
        return await self.write(lambda ledger: SiteLogWriter(ledger).receive(message, frame))

    async def _stage(self, *, from_start: bool) -> None:
        await self.write(lambda ledger: Recovery(ledger).stage(from_start=from_start))

    async def _answered(
        self, message: SiteHeads, *, forked: bool, before_opening: Callable[[], None]
    ) -> Opened | CloudLost | None:
        """The cloud has sent what it meant to send; see whether that is all, and go on with what waited for it."""
        self.heads = message.heads
        self.complete = not message.more and recovery.fetched(self.reader, message.heads)
        self.timer.answered(self.now_ms(), more=message.more)
        if not self.complete:
            self.timer.missing(self.now_ms())
            return None
        if not forked:
            return await self._compare(message.heads)
        if step := recovery.next_step(self.reader, message.heads):
            await self._stage(from_start=step is recovery.Staging.FROM_START)
            self.timer.poll_now(self.now_ms())
            return None
        before_opening()
        return await self.write(lambda ledger: Recovery(ledger).open_epoch(message.heads))

    async def _compare(self, heads: Sequence[LogCursor]) -> CloudLost | None:
        """See whether the cloud has fallen back behind what is known here, and for good."""
        lost, unlike = recovery.lost_by_cloud(self.reader, heads), diverged_from_cloud(self.reader, heads)
        if not lost and not unlike:
            self._lost_since_ms = None
        elif self._lost_since_ms is None:
            self._lost_since_ms = self.now_ms()
        elif self.now_ms() - self._lost_since_ms < self.settings.lost_log_wait_s * 1_000:
            return None
        elif lost:
            return CloudLost()
        else:
            await self._forget(unlike)
            self._lost_since_ms = None
            self.timer.poll_now(self.now_ms())
        return None

    async def _forget(self, logs: Sequence[int]) -> None:
        log.error("site_logs_fetched_anew", gateway=self.gateway, logs=len(logs))
        await self.write(lambda ledger: SiteLogWriter(ledger).forget(*logs))

"""A cloud worker: production's merge loop, presence and site service, on virtual time.

Production's coroutines wait for nothing but the database and pauses. Here each wait is a step of virtual time, between
any two of which the worker may die, and the database is `simulation.store`: `VirtualDatabase` knows a function in
memory for each function of `cloud_store` that these coroutines call. Only the merge's transaction itself is written
again, because production's is SQL.
"""

from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from functools import lru_cache, partial
from typing import Any, Final, NoReturn, Protocol, cast

from cloud_ingest.context import Context
from cloud_ingest.inbound import Inbound
from cloud_ingest.leases import rebalance
from cloud_ingest.merge.inbox import Inbox
from cloud_ingest.merge.loop import MergeLoop, decode
from cloud_ingest.merge.presence import GATHER_S, Presence
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.services.sites import Sites
from cloud_ingest.settings import IngestSettings
from cloud_store.base import connection
from cloud_store.base.database import Database
from cloud_store.base.gateways import Gateway
from cloud_store.base.leases import Survey
from cloud_store.merge import dead_letters, plan, presence
from cloud_store.merge.arrivals import ArrivedFrame, LogKey, MergedFrame, MergeReport
from cloud_store.merge.plan import Plan
from cloud_store.provisioning import sites
from simulation.cloud import answers
from simulation.cloud.answers import RepeatQueries
from simulation.store import DatabaseAway, Store
from simulation.world import Process, World
from wire_protocol import times as times_of
from wire_protocol import topics
from wire_protocol.messages import Ack, ClampedTime
from wire_protocol.replication import NO_CURSOR
from wire_protocol.topics import STREAM_OF, Channel, LinkTopic

BATCH_FRAMES_MAX: Final = 8
INBOX_FRAMES_MAX: Final = 24
STEP_MS: Final = (1, 25)
RETRY_MS: Final = 500
# Production tries again within seconds; in hours without a database that would be most of a universe's steps.
PAUSES_STRETCHED: Final = 20
LEASE_MS: Final = (20_000, 40_000)
DOWN_MS_MAX: Final = 600_000
ANSWER_BYTES_MAX: Final = 2_000
CLAMPED_REPORTED_MAX: Final = 200

Task = Coroutine[int, None, None]


class CursorMoved(Exception):
    """Another worker moved a cursor between planning and locking."""


class CloudView(Protocol):
    """What a worker sees of the rest of the cloud."""

    store: Store
    registry: dict[str, Gateway]

    def survey(self, worker: "SimWorker") -> Survey:
        """Who holds which leases."""

    def publish(self, gateway: str, channel: Channel, payload: bytes) -> None:
        """Publish on one of a gateway's topics."""


class Pause:
    """What production waits for: so many milliseconds of virtual time."""

    def __init__(self, delay_ms: int) -> None:
        self._delay_ms = delay_ms

    def __await__(self) -> Generator[int, None, None]:
        yield self._delay_ms


class VirtualDatabase:
    """Stands for `cloud_store.base.database.Database`: each function that is run has its twin in memory."""

    def __init__(self, worker: "SimWorker") -> None:
        store, registry = worker.store, worker.fleet.registry
        self._pause = worker.step
        self._twins: dict[Callable[..., Any], Callable[..., Any]] = {
            connection.answers: store.require,
            dead_letters.add: lambda _: store.require(),  # what is isolated ends the run: see `SimWorker._failed`
            presence.exchange: partial(answers.exchange, store),
            sites.peers: partial(_required, store, partial(answers.peers, registry)),
            sites.answer: partial(answers.answer, store, registry),
        }

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the twin of a function, a moment later."""
        await self._pause()
        return self._twins[function](*args, **kwargs)


def _required(store: Store, twin: Callable[..., Any], *args: Any) -> Any:
    store.require()
    return twin(*args)


@lru_cache(maxsize=4096)
def _parsed(topic: str) -> LinkTopic:
    parsed = topics.parse(topic)
    assert isinstance(parsed, LinkTopic)  # noqa: S101 - nothing else is published in a universe
    return parsed


class SimWorker(Process):
    """One ingest worker through all its lives; nothing of it survives a death."""

    def __init__(self, world: World, fleet: CloudView, name: str) -> None:
        super().__init__(world, name)
        self.fleet, self.store = fleet, fleet.store
        self.repeats = RepeatQueries(self.store, fleet.registry)
        self._rng = world.rng(f"{name}.steps")
        self._context = Context(
            IngestSettings.model_construct(site_answer_bytes_max=ANSWER_BYTES_MAX),
            cast("Database", VirtualDatabase(self)),
            self.publish,
            WorkerMetrics(),
            self._failed,
            now_ms=lambda: world.now_ms,
            mono_s=lambda: world.now_ms / 1_000,
            pause=lambda seconds: _awaited(Pause(round(seconds * 1_000 * PAUSES_STRETCHED))),
        )
        self.shards: frozenset[int] = frozenset()
        self.start()

    def start(self) -> None:
        """A new process."""
        if self.alive:
            return
        self.alive = True
        self.session = self.store.session
        self.inbox = Inbox(frames_max=INBOX_FRAMES_MAX, bytes_max=self._context.settings.inbox_bytes_max)
        self.sites = Sites(self._context)
        self.loop = MergeLoop(
            self._context,
            inbox=self.inbox,
            merge_frames=self.merge_frames,
            merged=self._merged,
            acknowledged=lambda logs: self.presence.acknowledged(logs),  # noqa: PLW0108 - made in the next line
        )
        self.presence = Presence(self._context, self.loop.window_of)
        self._merging = self._answering = self._passing = False
        self.note("starts")
        self.lease_soon()

    def die(self) -> None:
        super().die()
        self.shards = frozenset()
        self.note("is gone")
        self.world.schedule.after(self._rng.randint(1_000, DOWN_MS_MAX), self.start)

    def crash_point(self, where: str) -> None:
        """Perhaps the process is killed here."""
        self.may_crash(where, self.world.fault_rates.worker_dies)

    async def step(self) -> None:
        """A moment passes, in which anything may happen elsewhere."""
        await Pause(self._rng.randint(*STEP_MS))

    def drive(self, task: Task, ended: Callable[[], None]) -> None:
        """Run one of production's coroutines through its pauses, if this life lasts that long."""
        try:
            delay_ms = task.send(None)
        except StopIteration:
            ended()
        else:
            self.later(delay_ms, lambda: self.drive(task, ended))

    @staticmethod
    def _failed(_service: str, _gateway: str | None, error: Exception) -> NoReturn:
        """In a universe nothing may be dropped: what a guard of production has caught is a failure of the run."""
        raise AssertionError(f"production dropped an item: {error!r}") from error

    # --- leases -------------------------------------------------------------------------------------------------

    def lease_soon(self) -> None:
        """Look at the leases shortly."""
        self.later(self._rng.randint(*LEASE_MS), self._lease)

    def _lease(self) -> None:
        self.lease_soon()
        if self.store.away:
            return
        if self.session != self.store.session:
            # The session that held the leases is gone, and they with it.
            self.session, self.shards = self.store.session, frozenset()
        survey = self.fleet.survey(self)
        change = rebalance(survey)
        held = survey.mine - change.release | change.acquire
        gained, self.shards = held - self.shards, held
        if gained:
            self.note(f"leases {len(held)} shards")
            self.presence.subscribed(gained)
            self._answer_soon()

    def session_lost(self) -> None:
        """The database is gone, and the leases with it."""
        self.shards = frozenset()

    def resubscribed(self) -> None:
        """The broker was away, and has confirmed the subscriptions again."""
        self.presence.subscribed(self.shards)
        self._answer_soon()

    # --- messages -----------------------------------------------------------------------------------------------

    def hear(self, topic: str, payload: bytes) -> None:
        """A payload on a subscribed topic."""
        parsed = _parsed(topic)
        inbound = Inbound(parsed.gateway, parsed.channel, topic, payload, self.world.now_ms)
        if inbound.channel in STREAM_OF:
            if self.loop.offer(inbound):
                self.presence.sending(inbound.sender, inbound.stream)
                self._merge_soon()
        elif inbound.channel is Channel.STATUS:
            self.presence.reported(inbound)
            self._answer_soon()
        elif inbound.channel is Channel.SITE_REQUEST:
            self.sites.requested(inbound)
            self._pass_soon()

    def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """Production publishes: an acknowledgement is looked at by the checks on its way."""
        del qos, retain
        parsed = _parsed(topic)
        if parsed.channel is Channel.ACK:
            self.crash_point("before an acknowledgement")
            self._check(parsed.gateway, Ack.decode(payload))
        else:
            self.crash_point("before it passes frames down")
        self.fleet.publish(parsed.gateway, parsed.channel, payload)

    def _check(self, gateway: str, ack: Ack) -> None:
        assert ack.epoch is not None  # noqa: S101 - workers always say which log they mean
        more = "".join(
            f", {name} {value}" for name, value in (("wants", ack.want), ("fork:", ack.fork)) if value is not None
        )
        self.note(f"tells {gateway} {ack.epoch[-4:]} {ack.stream} {ack.frame}{more}")
        self.world.checks.acknowledged(self.store, LogKey(gateway, ack.stream, ack.epoch), ack)

    # --- presence and sites -------------------------------------------------------------------------------------

    def _answer_soon(self) -> None:
        if not self._answering:
            self._answering = True
            self.later(round(GATHER_S * 1_000), lambda: self.drive(_again(self.presence.answer), self._answered))

    def _answered(self) -> None:
        self._answering = False

    def _merged(self, frames: Sequence[MergedFrame]) -> None:
        self.sites.merged(frames)
        if frames:
            self._pass_soon()

    def _pass_soon(self) -> None:
        if not self._passing:
            self._passing = True
            self.drive(self._pass(), self._passed)

    def _passed(self) -> None:
        self._passing = False

    async def _pass(self) -> None:
        """Push what was merged and answer requests, as long as there is something to do."""
        await self.step()
        await _again(self.sites.push)
        while len(self.sites.requests):
            gateway, request, _ = self.sites.requests.pop()
            await _again(partial(self.sites.answer, gateway, request))
            await _again(self.sites.push)

    # --- merging ------------------------------------------------------------------------------------------------

    def _merge_soon(self) -> None:
        if not self._merging:
            self._merging = True
            self.later(self._context.settings.batch_delay_ms, lambda: self.drive(self._merge_all(), self._idle))

    def _idle(self) -> None:
        self._merging = False

    async def _merge_all(self) -> None:
        while len(self.inbox):
            decoded, letters = decode(self.inbox.take(BATCH_FRAMES_MAX))
            self.loop.settle([(letter.gateway or "", letter.payload) for letter in letters])
            if letters:
                self.note(f"cannot read {len(letters)} frames")
            await self.step()
            if decoded:
                await self.loop.merge(decoded)
                self.loop.settle([(arrived.gateway, arrived.payload) for arrived in decoded])
            await Pause(self._context.settings.batch_delay_ms)

    async def merge_frames(self, batch: Sequence[ArrivedFrame]) -> MergeReport:
        """What `cloud_store.merge.batch.Merger.merge` does, on this store."""
        while True:
            cursors = self.store.read_cursors({arrived.gateway for arrived in batch})
            planned = plan.make(batch, self.fleet.registry, cursors)
            self.repeats.take_out(planned)
            await self.step()
            self.crash_point("before its transaction")
            try:
                self.commit(planned)
            except CursorMoved:
                self.note("plans again")
            except DatabaseAway:
                self.session = self.store.session
                raise
            else:
                await self.step()
                return planned.report
            await self.step()

    def commit(self, planned: Plan) -> None:
        """Rows and cursors, in one transaction."""
        with self.store.transaction(self.session):
            self.require_fresh(planned)
            self.write_rows(planned)
            self.crash_point("inside its transaction")
            self.write_cursors(planned)
        self.committed(planned)
        if planned.merged and self.world.happens(f"{self.name}.unheard", self.world.fault_rates.commit_unheard):
            self.note("does not hear of its commit")
            raise DatabaseAway
        self.crash_point("after its commit")

    def require_fresh(self, planned: Plan) -> None:
        """The cursors are locked, and must be those the plan was made for."""
        stored = self.store.cursors
        if any(stored.get(key, NO_CURSOR) != cursor for key, cursor in planned.cursors.items()):
            raise CursorMoved

    def write_rows(self, planned: Plan) -> None:
        """Store the frames that were next, and what is to be told about them."""
        report = planned.report
        report.merged = [
            MergedFrame(frame.arrived, frame.gateway.site_id, tuple(sorted(bad.seq for bad in frame.rejected)))
            for frame in planned.merged
            if frame.arrived.stream == "ledger"
        ]
        for outcome in report.streams.values():
            outcome.bounded.clear()
        for frame in planned.merged:
            boots, received_ms = frame.arrived.frame.header.boots, frame.arrived.received_ms
            times = {seq: times_of.true_time(entry, boots, received_ms) for seq, entry in frame.entries}
            told = report.streams[frame.arrived.log].bounded
            told += [ClampedTime(seq=seq, at_ms=at.at_ms) for seq, at in times.items() if at.claimed_ms is not None]
            del told[CLAMPED_REPORTED_MAX:]
            self.store.add(frame, frame.gateway.site_id, {seq: at.at_ms for seq, at in times.items()})

    def write_cursors(self, planned: Plan) -> None:
        """Move the cursors."""
        for key, outcome in planned.report.streams.items():
            if outcome.receiver.cursor != planned.cursors[key]:
                self.store.advance(key, outcome.receiver.cursor)

    def committed(self, planned: Plan) -> None:
        """Tell the checks."""
        if planned.merged:
            frames = ", ".join(
                f"{f.arrived.gateway} {f.arrived.log.epoch[-4:]} {f.arrived.stream} {f.arrived.frame.header.frame}"
                for f in planned.merged
            )
            self.note(f"commits {frames}")
            self.world.checks.merged(self.store, planned)


async def _awaited(pause: Pause) -> None:
    await pause


async def _again(step: Callable[[], Awaitable[None]]) -> None:
    """As `cloud_ingest.mailbox.serve` does it while the database is away."""
    while True:
        try:
            await step()
        except DatabaseAway:
            await Pause(RETRY_MS)
        else:
            return

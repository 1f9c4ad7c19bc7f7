"""A cloud worker: production's inbox, decoding, planning, repeats, receivers, contacts and leases, on virtual time.

This follows `cloud_ingest.merge.loop`, `cloud_ingest.services.sites` and `cloud_store.merge.batch` step by step, which
cannot run without asyncio and PostgreSQL; between any two of its steps the worker may die.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from cloud_ingest.inbound import Arrival
from cloud_ingest.leases import rebalance
from cloud_ingest.merge.inbox import Inbox, window
from cloud_ingest.merge.loop import decode
from cloud_ingest.merge.presence import Contacts
from cloud_ingest.services.sites import as_passed_down
from cloud_ingest.settings import IngestSettings
from cloud_store.base.gateways import Gateway
from cloud_store.base.leases import Survey
from cloud_store.merge import plan
from cloud_store.merge.arrivals import ArrivedFrame, LogKey, MergedFrame, MergeReport
from cloud_store.merge.plan import Plan
from simulation.cloud import answers
from simulation.cloud.answers import RepeatQueries, VirtualContactStore
from simulation.cloud.store import DatabaseAway, Store
from simulation.world import Process, World
from wire_protocol import times as times_of
from wire_protocol import topics
from wire_protocol.messages import Ack, Bounded, InvalidMessage, Rejected
from wire_protocol.replication import NO_CURSOR, Cursor, Receiver
from wire_protocol.site_messages import SiteAsk, SiteHeads, pack
from wire_protocol.topics import Channel, LinkTopic

BATCH_FRAMES_MAX: Final = 8
INBOX_FRAMES_MAX: Final = 24
STEP_MS: Final = (1, 25)
RETRY_MS: Final = 500
RETRY_MS_MAX: Final = 60_000
GATHER_MS: Final = 300
LEASE_MS: Final = (20_000, 40_000)
DOWN_MS_MAX: Final = 600_000
ANSWER_BYTES_MAX: Final = 2_000
BOUNDED_TOLD_MAX: Final = 200


class PlanStale(Exception):
    """Another worker moved a cursor between planning and locking."""


class Fleet(Protocol):
    """What a worker sees of the rest of the cloud."""

    store: Store
    registry: dict[str, Gateway]

    def survey(self, worker: "Worker") -> Survey:
        """Who holds which leases."""

    def publish(self, gateway: str, channel: Channel, payload: bytes) -> None:
        """Publish on one of a gateway's topics."""


class VirtualContacts(Contacts):
    """Production's contacts; the answer is made in one step instead of a loop."""

    def due(self) -> list[tuple[LogKey, Cursor, list[Rejected]]]:
        """The streams to ask now, and what is told again about them.

        Raises:
            DatabaseAway: nobody can be answered yet; what is due stays so.
        """
        letters, statuses = list(self._letters.values()), dict(self._statuses)
        shards, arrived = frozenset(self._new_shards), frozenset(self._arrived)
        cursors, verdicts = self._look_up(letters, statuses, shards, arrived)
        self._letters.clear()
        self._statuses.clear()
        self._new_shards.clear()
        self._arrived.clear()
        wanted = [(key, at, verdicts.get(key, [])) for key, at in cursors.items() if key[:2] not in self._sending]
        self._sending.clear()
        return wanted


class Worker(Process):
    """One ingest worker through all its lives; nothing of it survives a death."""

    def __init__(self, world: World, fleet: Fleet, name: str) -> None:
        super().__init__(world, name)
        self.fleet, self.store = fleet, fleet.store
        self.settings = IngestSettings.model_construct(site_answer_bytes_max=ANSWER_BYTES_MAX)
        self.repeats = RepeatQueries(self.store, fleet.registry)
        self._rng = world.rng(f"{name}.steps")
        self.shards: frozenset[int] = frozenset()
        self.start()

    def start(self) -> None:
        """A new process."""
        if self.alive:
            return
        self.alive = True
        self.session = self.store.session
        self.inbox = Inbox(frames_max=INBOX_FRAMES_MAX, bytes_max=self.settings.inbox_bytes_max)
        self.contacts = VirtualContacts(
            self.settings, VirtualContactStore(self.store), lambda _topic, _payload: None, lambda _: self.window
        )
        self._asks: dict[str, SiteAsk] = {}
        self._merged: list[MergedFrame] = []
        self._passing = False
        self._last: dict[LogKey, Receiver] = {}
        self._stalled: set[LogKey] = set()
        self._busy = self._answering = False
        self.note("starts")
        self.lease_soon()

    def die(self) -> None:
        super().die()
        self.shards = frozenset()
        self.note("is gone")
        self.world.schedule.after(self._rng.randint(1_000, DOWN_MS_MAX), self.start)

    def at_brink(self, where: str) -> None:
        """Perhaps the process is killed here."""
        self.brink(where, self.world.weather.worker_dies)

    @property
    def window(self) -> int:
        """How many frames a gateway may have in flight now."""
        return 0 if self._stalled else window(self.inbox.fill, self.settings.window_frames_max)

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
            self.contacts.subscribed(gained)
            self._answer_soon()

    def session_lost(self) -> None:
        """The database is gone, and the leases with it."""
        self.shards = frozenset()

    def resubscribed(self) -> None:
        """The broker was away, and has confirmed the subscriptions again."""
        self.contacts.subscribed(self.shards)
        self._answer_soon()

    # --- arrivals -----------------------------------------------------------------------------------------------

    def hear(self, topic: str, payload: bytes) -> None:
        """A payload on a subscribed topic."""
        parsed = topics.parse(topic)
        assert isinstance(parsed, LinkTopic)  # noqa: S101 - gateways publish nothing else
        if (stream := parsed.stream) is not None:
            arrival = Arrival(parsed.gateway, stream, topic, payload, self.world.now_ms)
            if self.inbox.offer(arrival) == "taken":
                self.contacts.sending(parsed.gateway, stream)
                self._work_soon()
        elif parsed.channel is Channel.STATUS:
            self.contacts.heard(parsed.gateway, topic, payload, received_ms=self.world.now_ms, retained=False)
            self._answer_soon()
        elif parsed.channel is Channel.SITE_ASK:
            self._asked(parsed.gateway, payload)

    def _answer_soon(self) -> None:
        if not self._answering:
            self._answering = True
            self.later(GATHER_MS, self._answer)

    def _answer(self) -> None:
        """Tell gateways their cursors and ask for what follows."""
        try:
            due = self.contacts.due()
        except DatabaseAway:
            self.later(RETRY_MS, self._answer)
            return
        self._answering = False
        for key, cursor, rejected in due:
            self._tell(key, Receiver(*key, cursor).ack(self.world.now_ms, self.window, rejected=rejected, ask=True))

    # --- merging ------------------------------------------------------------------------------------------------

    def _work_soon(self) -> None:
        if not self._busy:
            self._busy = True
            self.later(self.settings.batch_delay_ms, self._take)

    def _take(self) -> None:
        decoded, letters = decode(self.inbox.take(BATCH_FRAMES_MAX))
        self.inbox.settled((letter.gateway or "", letter.payload) for letter in letters)
        if letters:
            self.note(f"cannot read {len(letters)} frames")
        self._next(lambda: self._plan(decoded, RETRY_MS))

    def _next(self, step: Callable[[], None]) -> None:
        self.later(self._rng.randint(*STEP_MS), step)

    def _plan(self, batch: list[ArrivedFrame], retry_ms: int) -> None:
        try:
            cursors = self.store.read_cursors({arrived.gateway for arrived in batch})
            planned = plan.make(batch, self.fleet.registry, cursors)
            self.repeats.take_out(planned)
        except DatabaseAway:
            self._stall(batch, retry_ms)
            return
        self._next(lambda: self._merge(batch, planned, retry_ms))

    def _merge(self, batch: list[ArrivedFrame], planned: Plan, retry_ms: int) -> None:
        self.at_brink("before its transaction")
        try:
            self.commit(planned)
        except PlanStale:
            self.note("plans again")
            self._next(lambda: self._plan(batch, retry_ms))
        except DatabaseAway:
            self.session = self.store.session
            self._stall(batch, retry_ms)
        else:
            self._next(lambda: self._reported(batch, planned.report))

    def commit(self, planned: Plan) -> None:
        """Rows and cursors, in one transaction."""
        with self.store.transaction(self.session):
            self.require_fresh(planned)
            self.write_rows(planned)
            self.at_brink("inside its transaction")
            self.write_cursors(planned)
        self.committed(planned)
        if self.world.happens(f"{self.name}.unheard", self.world.weather.commit_unheard):
            self.note("does not hear of its commit")
            raise DatabaseAway
        self.at_brink("after its commit")

    def require_fresh(self, planned: Plan) -> None:
        """The cursors are locked, and must be those the plan was made for."""
        stored = self.store.cursors
        if any(stored.get(key, NO_CURSOR) != cursor for key, cursor in planned.cursors.items()):
            raise PlanStale

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
            told += [Bounded(seq=seq, at_ms=at.at_ms) for seq, at in times.items() if at.claimed_ms is not None]
            del told[BOUNDED_TOLD_MAX:]
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

    def _stall(self, batch: list[ArrivedFrame], retry_ms: int) -> None:
        """The database is away: tell every gateway of the batch, once, to hold its frames, and try again."""
        keys = {arrived.log for arrived in batch}
        for key in sorted(keys - self._stalled):
            self._stalled.add(key)
            if key in self._last:
                self._tell(key, self._last[key].ack(self.world.now_ms, 0))
        self.later(retry_ms, lambda: self._plan(batch, min(RETRY_MS_MAX, retry_ms * 2)))

    def _reported(self, batch: list[ArrivedFrame], report: MergeReport) -> None:
        self.inbox.settled((arrived.gateway, arrived.payload) for arrived in batch)
        self._report(report)

    def _report(self, report: MergeReport) -> None:
        waiting, self._stalled = self._stalled - report.streams.keys(), set()
        for key, outcome in report.streams.items():
            now_ms, room = self.world.now_ms, self.window
            ack = outcome.receiver.ack(now_ms, room, rejected=outcome.rejected, bounded=outcome.bounded)
            self._tell(key, ack)
            self._last[key] = outcome.receiver
        for key in sorted(waiting & self._last.keys()):
            self._tell(key, self._last[key].ack(self.world.now_ms, self.window, ask=True))
        self._pass_on(report.merged)
        self._busy = False
        if len(self.inbox):
            self._work_soon()

    def _tell(self, key: LogKey, ack: Ack) -> None:
        self.at_brink("before an acknowledgement")
        more = "".join(
            f", {name} {value}" for name, value in (("wants", ack.want), ("fork:", ack.fork)) if value is not None
        )
        self.note(f"tells {key.gateway} {key.epoch[-4:]} {key.stream} {ack.frame}{more}")
        self.world.checks.acknowledged(self.store, key, ack)
        self.fleet.publish(key.gateway, Channel.ACK, ack.encode())

    # --- sites --------------------------------------------------------------------------------------------------

    def _asked(self, gateway: str, payload: bytes) -> None:
        """A gateway asks for its site's other logs; the latest ask of each is kept until it is answered."""
        try:
            self._asks[gateway] = SiteAsk.decode(payload)
        except InvalidMessage:
            self.note(f"cannot read what {gateway} asks")
            return
        self._pass_soon()

    def _pass_on(self, merged: Sequence[MergedFrame]) -> None:
        """Ledger frames were committed."""
        self._merged += merged
        if merged:
            self._pass_soon()

    def _pass_soon(self) -> None:
        if not self._passing:
            self._passing = True
            self._next(self._pass)

    def _pass(self) -> None:
        """Push what was merged, then answer one gateway."""
        merged, self._merged = self._merged, []
        try:
            self.push(merged)
            if self._asks:
                gateway, ask = next(iter(self._asks.items()))
                self._answer_ask(gateway, ask)
                if self._asks.get(gateway) is ask:
                    del self._asks[gateway]
        except DatabaseAway:
            self.later(2 * RETRY_MS, self._pass)
            return
        self._passing = False
        if self._asks or self._merged:
            self._pass_soon()

    def push(self, merged: Sequence[MergedFrame]) -> None:
        """Pass committed frames down to the other gateways of their sites."""
        if merged:
            self.store.require()
        for peer, registered in self.fleet.registry.items():
            news = [frame for frame in merged if frame.site_id == registered.site_id and frame.arrived.gateway != peer]
            for payload in pack(as_passed_down(frame).encode() for frame in news):
                self.at_brink("before it passes frames down")
                self.fleet.publish(peer, Channel.SITE_LEDGER, payload)

    def _answer_ask(self, gateway: str, ask: SiteAsk) -> None:
        answered = answers.answer(
            self.store, self.fleet.registry, gateway, ask, bytes_max=self.settings.site_answer_bytes_max
        )
        if not answered.heads:
            return
        self.note(f"answers {gateway} with {len(answered.frames)} frames" + (", more follow" * answered.more))
        heads = SiteHeads(heads=tuple(answered.heads), now_ms=self.world.now_ms, more=answered.more)
        for payload in pack([*(frame.encode() for frame in answered.frames), heads.encode()]):
            self.at_brink("before it answers with frames")
            self.fleet.publish(gateway, Channel.SITE_LEDGER, payload)

"""An ingest worker: the parts put together, run, and taken apart in order.

Invariant: one task group, every task named. On SIGTERM the worker stops reading, merges and answers what it has, gives
its leases back and ends with 0; the bound of that is a setting.
"""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import structlog

from cloud_identity.authority import signer
from cloud_ingest.context import Context
from cloud_ingest.failures import Failures
from cloud_ingest.inbound import Inbound
from cloud_ingest.leases import Leases
from cloud_ingest.merge.inbox import Inbox
from cloud_ingest.merge.lanes import MergeFrames
from cloud_ingest.merge.loop import MergeLoop
from cloud_ingest.merge.presence import Presence
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.services.catalog import Catalogs
from cloud_ingest.services.commands import Commands
from cloud_ingest.services.dashboards import Dashboards
from cloud_ingest.services.enrolment import Enrolment
from cloud_ingest.services.history import HistoryFolder
from cloud_ingest.services.images import Images
from cloud_ingest.services.jobs import Jobs
from cloud_ingest.services.revocations import Revocations
from cloud_ingest.services.sites import Sites
from cloud_ingest.services.stock_checks import StockChecks
from cloud_ingest.services.twins import Twins
from cloud_ingest.settings import IngestSettings
from cloud_ingest.transport.eviction import evict
from cloud_ingest.transport.link import Link
from cloud_store.base.database import Database
from cloud_store.base.leases import LeaseSession
from cloud_store.merge.arrivals import ArrivedFrame, MergeReport
from cloud_store.merge.batch import Merger
from wire_protocol.messages import InvalidMessage, Reply
from wire_protocol.topics import Channel

_LOG = structlog.get_logger()
FAST_STATEMENT_MS_MAX: Final = 5_000  # what takes longer goes to the slow lane, where a statement has 30 s
# Batches make and drop a hundred thousand small objects at once; with the default thresholds a quarter of the merge's
# time goes into looking at them.
GC_THRESHOLDS: Final = (100_000, 50, 50)
# A merge waits for the database some twenty times, and after each wait for the interpreter, which a busy thread
# (another lane, the slow lane, decoding) gives up after this time. With the default of 5 ms that is most of a merge.
SWITCH_INTERVAL_S: Final = 0.000_5


class Worker:
    """One ingest worker.

    It holds four connections to the database at most: one for merging, so that no merge waits for a service, one for
    its leases and notifications, and two for everything else. Each further lane (`merge_lanes`) has one more.
    """

    def __init__(self, settings: IngestSettings) -> None:
        self.settings, self.metrics = settings, WorkerMetrics()
        name, url = settings.worker_name, settings.database_url
        self._lanes = [
            (
                Database(
                    url,
                    application=f"stocktide-ingest {name}",
                    connections_max=1,
                    options=f"-c statement_timeout={FAST_STATEMENT_MS_MAX}",
                ),
                Merger(),
            )
            for _ in range(settings.merge_lanes)
        ]
        self._slow_merger = Merger()
        self._database = Database(
            url, application=f"stocktide-services {name}", connections_max=settings.database_connections_max
        )
        self._failures = Failures(self._database, self.metrics)
        self._link = Link(settings, self.metrics, self._failures.report, self._subscribed)
        context = Context(
            settings,
            self._database,
            self._link.publish,
            self.metrics,
            self._failures.report,
            payload_bytes_max=self._link.payload_bytes_max,
        )
        self._stock_checks, self._commands = StockChecks(context), Commands(context)
        self._sites, self._twins, self._catalogs = Sites(context), Twins(context), Catalogs(context)
        self._images, self._jobs, self._history = Images(context), Jobs(context), HistoryFolder(context)
        self._revocations, self._dashboards = Revocations(context, self._disconnect), Dashboards(context)
        self._enrolment = Enrolment(
            context,
            signer(
                settings.ca_dir,
                settings.signer_command,
                settings.ca_bundle_file,
                timeout_s=settings.signer_answer_s_max,
            ),
        )
        merges = [_merge_by(database, merger) for database, merger in self._lanes]
        self._merge_loop = MergeLoop(
            context,
            inbox=Inbox(frames_max=settings.inbox_frames_max, bytes_max=settings.inbox_bytes_max),
            merge_frames=merges[0],
            more_lanes=merges[1:],
            merge_apart=self._merge_apart,
            merged=self._sites.merged,
            acknowledged=lambda logs: self._presence.acknowledged(logs),  # noqa: PLW0108 - made in the next line
        )
        self._presence = Presence(context, self._merge_loop.window_of, self._stock_checks.reported)
        self._leases = Leases(
            lambda: LeaseSession(url, f"stocktide-leases {name}"),
            self._serve,
            self._notified,
            self.metrics,
            poll_s=settings.lease_poll_s,
        )
        self._register()

    def _register(self) -> None:
        """Which channel goes to which service."""
        self._link.on(Channel.LEDGER, self._frame)
        self._link.on(Channel.READINGS, self._frame)
        self._link.on(Channel.STATUS, self._presence.reported)
        self._link.on(Channel.REPORTED_TWIN, self._twins.reported)
        self._link.on(Channel.REPLY, self._replied)
        self._link.on(Channel.SITE_REQUEST, self._sites.requested)
        self._link.on(Channel.CATALOG_REQUEST, self._catalogs.requested)
        self._link.on(Channel.FIRMWARE_REQUEST, self._images.requested)
        self._link.on(Channel.CLAIM_REQUEST, self._enrolment.requested)
        self._link.on(Channel.CERTIFICATE_REQUEST, self._enrolment.requested)

    def _frame(self, inbound: Inbound) -> None:
        if self._merge_loop.offer(inbound):
            self._presence.sending(inbound.sender, inbound.stream)

    def _replied(self, inbound: Inbound) -> None:
        """A reply to a command is to a question of the stock checks, or to an operator's command."""
        try:
            reply = Reply.decode(inbound.payload)
        except InvalidMessage as error:
            _LOG.warning("reply_refused", gateway=inbound.sender, reason=str(error))
            return
        size_bytes = len(inbound.payload)
        if not self._stock_checks.replied(inbound.sender, reply, size_bytes):
            self._commands.replied(inbound.sender, reply, size_bytes)

    def _subscribed(self, shards: frozenset[int]) -> None:
        self._presence.subscribed(shards)

    def _serve(self, shards: frozenset[int]) -> None:
        for part in (self._link, self._twins, self._commands, self._catalogs, self._revocations):
            part.serve(shards)

    def _notified(self) -> None:
        """Something may have been written that gateways should get."""
        for part in (self._twins, self._commands, self._catalogs, self._jobs, self._revocations):
            part.wake()

    async def _merge_apart(self, frames: Sequence[ArrivedFrame]) -> MergeReport:
        """In the slow lane: on a connection of the services, of which one is left to them."""
        return await self._database.run(self._slow_merger.merge, frames)

    async def _disconnect(self, gateway: str) -> None:
        settings = self.settings
        await evict(
            settings.mqtt_url,
            gateway,
            ca_file=settings.mqtt_ca_file,
            cert_file=settings.mqtt_cert_file,
            key_file=settings.mqtt_key_file,
            mqtt_5=settings.mqtt_version == "5",
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then drain."""
        settings, name = self.settings, f"ingest[{self.settings.worker_name}]"
        gc.set_threshold(*GC_THRESHOLDS)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        services = (
            self._presence,
            self._sites,
            self._stock_checks,
            self._twins,
            self._commands,
            self._catalogs,
            self._images,
            self._jobs,
            self._enrolment,
            self._revocations,
            self._dashboards,
            self._history,
        )
        with ExitStack() as opened:
            for database in (self._database, *(database for database, _ in self._lanes)):
                opened.enter_context(database)
            opened.enter_context(self.metrics.served(settings.metrics_host, settings.metrics_port))
            async with asyncio.TaskGroup() as group:
                leases = group.create_task(self._leases.run(), name=f"{name}.leases")
                rest = [
                    group.create_task(self._link.run(), name=f"{name}.link"),
                    group.create_task(self._merge_loop.run(), name=f"{name}.merge"),
                    group.create_task(self._failures.run(), name=f"{name}.failures"),
                ]
                for service in services:
                    kind = type(service).__name__.lower()
                    rest += [group.create_task(loop, name=f"{name}.{kind}") for loop in service.loops()]
                await stop.wait()
                leases.cancel()
                await self._drain()
                for task in rest:
                    task.cancel()

    async def _drain(self) -> None:
        self._link.serve(frozenset())
        try:
            async with asyncio.timeout(self.settings.drain_s_max):
                await self._merge_loop.drained()
                await self._link.flush()
        except TimeoutError:
            # Whatever is left is not acknowledged, so it comes again, to another worker.
            _LOG.warning("drain_incomplete", after_s=self.settings.drain_s_max)


def _merge_by(database: Database, merger: Merger) -> MergeFrames:
    async def merge(frames: Sequence[ArrivedFrame]) -> MergeReport:
        return await database.run(merger.merge, frames)

    return merge


async def serve(settings: IngestSettings) -> None:
    """Run a worker until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    with _stopped_by_signals(stop.set):
        _LOG.info("worker_started", worker=settings.worker_name)
        await Worker(settings).run(stop)
        _LOG.info("worker_stopped", worker=settings.worker_name)


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)

"""An ingest worker: the parts put together, run, and taken apart in order.

Invariant: one task group, every task named. On SIGTERM the worker stops reading, merges and answers what it has, gives
its leases back and ends with 0; the bound of that is a setting.
"""

import asyncio
import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from cloud_identity.authority import signer
from cloud_ingest.leases import Leases
from cloud_ingest.merge.inbox import Arrival, Inbox
from cloud_ingest.merge.loop import Merging
from cloud_ingest.merge.presence import Contacts
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.services import commands, notifications
from cloud_ingest.services.catalog import Catalogs
from cloud_ingest.services.commands import Commands
from cloud_ingest.services.enrolment import Enrolment
from cloud_ingest.services.images import Images
from cloud_ingest.services.jobs import Jobs
from cloud_ingest.services.revocations import Revocations
from cloud_ingest.services.sites import Sites
from cloud_ingest.services.stock_checks import Proofs
from cloud_ingest.services.twins import Twins
from cloud_ingest.settings import IngestSettings
from cloud_ingest.transport.link import Link
from cloud_store.base.leases import LeaseSession
from cloud_store.base.notifications import DownlinkFeed
from cloud_store.identity.enrolment import EnrolmentStore
from cloud_store.identity.revocations import RevocationStore
from cloud_store.merge.batch import Merger
from cloud_store.merge.presence import ContactStore
from cloud_store.provisioning.catalog import CatalogStore
from cloud_store.provisioning.commands import CommandStore
from cloud_store.provisioning.firmware import FirmwareStore
from cloud_store.provisioning.jobs import JobStore
from cloud_store.provisioning.sites import SiteStore
from cloud_store.provisioning.twins import TwinStore
from cloud_store.reports.stock_checks import ProofStore
from cloud_store.tenancy.quotas import QuotaStore

_LOG = structlog.get_logger()
# Batches make and drop a hundred thousand small objects at once; with the default thresholds a quarter of the merge's
# time goes into looking at them.
GC_THRESHOLDS: Final = (100_000, 50, 50)


class Worker:
    """One ingest worker."""

    def __init__(self, settings: IngestSettings) -> None:
        self.settings, self.metrics = settings, WorkerMetrics()
        name, url = settings.worker_name, settings.database_url
        self._merger = Merger(url, application=f"stocktide-ingest {name}")
        # Two connections: a quarantine of the merge loop never waits for a look-up of the contacts.
        self._store = ContactStore(url, application=f"stocktide-contacts {name}")
        self._letters = ContactStore(url, application=f"stocktide-letters {name}")
        inbox = Inbox(frames_max=settings.inbox_frames_max, bytes_max=settings.inbox_bytes_max)
        self._link = Link(settings, self, self.metrics)
        self._quotas = QuotaStore(url, application=f"stocktide-quotas {name}")
        self._site_store = SiteStore(url, application=f"stocktide-sites {name}")
        self._sites = Sites(settings, self._site_store, self._link.publish, self.metrics)
        self._merging = Merging(
            settings, inbox=inbox, merger=self._merger, letters=self._letters, link=self._link, metrics=self.metrics,
            quotas=self._quotas, merged=self._sites.merged,
            acknowledged=lambda logs: self._contacts.acknowledged(logs),  # noqa: PLW0108 - they are made further down
        )  # fmt: skip
        self._proof_store = ProofStore(url, application=f"stocktide-proofs {name}")
        self._proofs = Proofs(settings, self._proof_store, self._link.publish, self.metrics)
        self._twin_store = TwinStore(url, application=f"stocktide-twins {name}")
        self._feed = DownlinkFeed(url, application=f"stocktide-downlink {name}")
        self._command_store = CommandStore(url, application=f"stocktide-commands {name}")
        self._catalog_store = CatalogStore(url, application=f"stocktide-catalogs {name}")
        self._catalogs = Catalogs(settings, self._catalog_store, self._link.publish)
        self._firmware_store = FirmwareStore(url, application=f"stocktide-firmware {name}")
        self._images = Images(settings, self._firmware_store, self._link.publish)
        self._job_store = JobStore(url, application=f"stocktide-jobs {name}")
        self._jobs = Jobs(self._job_store)
        self._commands = Commands(settings, self._command_store, self._link.publish)
        self._twins = Twins(settings, self._twin_store, self._link.publish, self.metrics)
        self._enrolment_store = EnrolmentStore(url, application=f"stocktide-enrolment {name}")
        self._enrolment = Enrolment(
            settings, self._enrolment_store,
            signer(
                settings.ca_dir, settings.signer_command, settings.ca_bundle_file,
                timeout_s=settings.signer_answer_s_max,
            ),
            self._link.publish, self.metrics,
        )  # fmt: skip
        self._revocation_store = RevocationStore(url, application=f"stocktide-revocations {name}")
        self._revocations = Revocations(settings, self._revocation_store, self.metrics)
        self._contacts = Contacts(
            settings, self._store, self._link.publish, self._merging.window_of, self._proofs.proved
        )
        self._leases = Leases(
            lambda: LeaseSession(url, f"stocktide-leases {name}"), self._serve, self.metrics,
            poll_s=settings.lease_poll_s,
        )  # fmt: skip

    def frame(self, arrival: Arrival) -> None:
        """Part of `link.Receiving`."""
        if self._merging.offer(arrival):
            self._contacts.sending(arrival.gateway, arrival.stream)

    def status(self, gateway: str, topic: str, payload: bytes, *, received_ms: int, retained: bool) -> None:
        """Part of `link.Receiving`."""
        self._contacts.heard(gateway, topic, payload, received_ms=received_ms, retained=retained)

    def replied(self, gateway: str, payload: bytes) -> None:
        """Part of `link.Receiving`."""
        reply = commands.decode(gateway, payload)
        if reply is not None and not self._proofs.replied(gateway, reply, len(payload)):
            self._commands.replied(gateway, reply, len(payload))

    def twin_reported(self, gateway: str, payload: bytes) -> None:
        """Part of `link.Receiving`."""
        self._twins.reported(gateway, payload)

    def catalog_asked(self, gateway: str, payload: bytes) -> None:
        """Part of `link.Receiving`."""
        self._catalogs.asked(gateway, payload)

    def firmware_asked(self, gateway: str, payload: bytes) -> None:
        """Part of `link.Receiving`."""
        self._images.asked(gateway, payload)

    def asked(self, gateway: str, payload: bytes) -> None:
        """Part of `link.Receiving`."""
        self._sites.asked(gateway, payload)

    def claimed(self, claim: str, payload: bytes) -> None:
        """Part of `link.Receiving`."""
        self._enrolment.claimed(claim, payload)

    def renewing(self, gateway: str, payload: bytes) -> None:
        """Part of `link.Receiving`."""
        self._enrolment.renewing(gateway, payload)

    def subscribed(self, shards: frozenset[int]) -> None:
        """Part of `link.Receiving`."""
        self._contacts.subscribed(shards)

    def _serve(self, shards: frozenset[int]) -> None:
        self._link.serve(shards)
        self._twins.serve(shards)
        self._commands.serve(shards)
        self._catalogs.serve(shards)
        self._revocations.serve(shards)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then drain."""
        settings, name = self.settings, self.settings.worker_name
        gc.set_threshold(*GC_THRESHOLDS)
        try:
            with self.metrics.served(settings.metrics_host, settings.metrics_port):
                async with asyncio.TaskGroup() as group:
                    leases = group.create_task(self._leases.run(), name=f"ingest[{name}].leases")
                    rest = [
                        group.create_task(self._link.run(), name=f"ingest[{name}].link"),
                        group.create_task(self._merging.run(), name=f"ingest[{name}].merging"),
                        group.create_task(self._contacts.run(), name=f"ingest[{name}].contacts"),
                        group.create_task(self._sites.run(), name=f"ingest[{name}].sites"),
                        group.create_task(self._proofs.run(), name=f"ingest[{name}].proofs"),
                        group.create_task(self._twins.run(), name=f"ingest[{name}].twins"),
                        group.create_task(self._commands.run(), name=f"ingest[{name}].commands"),
                        group.create_task(self._catalogs.run(), name=f"ingest[{name}].catalogs"),
                        group.create_task(self._images.run(), name=f"ingest[{name}].images"),
                        group.create_task(self._jobs.run(), name=f"ingest[{name}].jobs"),
                        group.create_task(
                            notifications.listen(
                                self._feed,
                                self._twins.wake,
                                self._commands.wake,
                                self._catalogs.wake,
                                self._jobs.wake,
                                self._revocations.wake,
                            ),
                            name=f"ingest[{name}].downlink",
                        ),
                        group.create_task(self._enrolment.run(), name=f"ingest[{name}].enrolment"),
                        group.create_task(self._revocations.run(), name=f"ingest[{name}].revocations"),
                    ]
                    await stop.wait()
                    leases.cancel()
                    await self._drain()
                    for task in rest:
                        task.cancel()
        finally:
            stores = (
                self._store,
                self._letters,
                self._quotas,
                self._site_store,
                self._proof_store,
                self._twin_store,
                self._command_store,
                self._catalog_store,
                self._firmware_store,
                self._job_store,
                self._enrolment_store,
                self._revocation_store,
                self._feed,
            )
            for store in (self._merger, *stores):
                store.close()

    async def _drain(self) -> None:
        self._link.serve(frozenset())
        try:
            async with asyncio.timeout(self.settings.drain_s_max):
                await self._merging.drained()
                await self._link.flush()
        except TimeoutError:
            # Whatever is left is not acknowledged, so it comes again, to another worker.
            _LOG.warning("drain_incomplete", after_s=self.settings.drain_s_max)


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

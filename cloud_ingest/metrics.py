"""Prometheus metrics of a worker, in a registry of its own so that tests can have many workers in one process."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from cloud_store.merge.arrivals import MergeReport

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class WorkerMetrics:
    """What one worker counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.frames = Counter("stocktide_frames", "Frames by what became of them", ["verdict"], registry=registry)
        self.entries = Counter("stocktide_entries", "Entries merged, by kind", ["kind"], registry=registry)
        self.rejected = Counter("stocktide_entries_rejected", "Entries quarantined", registry=registry)
        self.merge_s = Histogram("stocktide_merge_seconds", "Time of one merge", buckets=_SECONDS, registry=registry)
        self.merge_failures = Counter("stocktide_merge_failures", "Merges that failed", registry=registry)
        self.acks = Counter("stocktide_acks", "Acknowledgements, by outcome", ["outcome"], registry=registry)
        self.site_frames = Counter(
            "stocktide_site_frames", "Frames passed on to a site's other gateways, by way", ["way"], registry=registry
        )
        self.proofs = Counter(
            "stocktide_stock_proofs",
            "Stock of gateways compared with the cloud's, by result",
            ["result"],
            registry=registry,
        )
        self.twins = Counter("stocktide_twins", "Twins pushed, reported, refused", ["way"], registry=registry)
        self.certificates = Counter(
            "stocktide_certificate_requests", "Claims and renewals, by outcome", ["outcome"], registry=registry
        )
        self.pending = Counter(
            "stocktide_gateways_cut", "Revoked gateways whose connection was ended", registry=registry
        )
        self.failed_items = Counter(
            "stocktide_failed_items",
            "Messages and events that a service could not use and dropped",
            ["service"],
            registry=registry,
        )
        self.refused_items = Counter(
            "stocktide_refused_items",
            "Messages that did not fit into a service's mailbox",
            ["service"],
            registry=registry,
        )
        self.inbox_fill = Gauge("stocktide_inbox_fill_ratio", "Fill of the queue before the merge", registry=registry)
        self.shards = Gauge("stocktide_shards_leased", "Shards this worker holds", registry=registry)
        self.connected = Gauge("stocktide_broker_connected", "1 while connected to the broker", registry=registry)

    def merged(self, report: MergeReport, seconds: float) -> None:
        """Count a merge."""
        self.merge_s.observe(seconds)
        self.rejected.inc(report.rejected)
        for verdict, number in (
            ("merged", report.frames),
            ("duplicate", report.duplicates),
            ("ahead", report.ahead),
            ("fork", report.forks),
        ):
            self.frames.labels(verdict).inc(number)
        for kind, number in (
            ("movement", report.movements),
            ("count", report.counts),
            ("reading", report.readings),
        ):
            self.entries.labels(kind).inc(number)

    @contextmanager
    def served(self, host: str, port: int | None) -> Iterator[None]:
        """Serve /metrics while the block runs; nothing when there is no port."""
        if port is None:
            yield
            return
        server, thread = start_http_server(port, addr=host, registry=self.registry)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

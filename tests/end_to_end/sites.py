"""A site of several gateways as real processes: agents, their brokers and scanners, a worker, a database."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from cloud_store.base.connection import Connection
from cloud_store.reports import snapshots
from edge_agent.ledger import audit, database, queries
from testbed.agent_process import AgentProcess
from testbed.eventually import eventually
from testbed.scanner import Scanner
from testbed.services import PrivateBroker
from testbed.worker_process import WorkerProcess
from wire_protocol import stock
from wire_protocol.stock import Cell

SETTLE_S = 60.0
SETTINGS = {
    "STOCKTIDE_EDGE_RESEND_DELAY_MS": "500",
    "STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX": "1",
    "STOCKTIDE_EDGE_SITE_ASK_INTERVAL_S": "2",
}


@dataclass
class Post:
    """One gateway with a broker and a scanner of its own. `sent` are the events its scanner has reported."""

    name: str
    agent: AgentProcess
    broker: PrivateBroker
    scanner: Scanner
    sent: int = 0

    def scan(self, count: int) -> None:
        """Goods come in."""
        for _ in range(count):
            self.sent += 1
            self.scanner.scan(
                f"{self.scanner.name}-{self.sent}", sku=f"SKU-{self.sent % 7}", quantity=1 + self.sent % 3
            )

    def settled(self) -> bool:
        """Whether every scan has its receipt, and the cloud every entry."""
        if len(self.scanner.committed) < self.sent:
            self.scanner.wait_for_receipts(self.sent, timeout_s=1)
            self.scanner.resend()
            return False
        with closing(database.open_reader(self.agent.ledger)) as reader:
            streams = queries.status(reader, self.agent.ledger)["streams"]
            return streams["ledger"]["waiting"] == 0 and streams["ledger"]["fork"] is None

    def times(self, event: str) -> int:
        """How often the agent has logged an event."""
        return self.agent.times(event)

    def balances(self) -> dict[Cell, int]:
        """What the gateway shows."""
        with closing(database.open_reader(self.agent.ledger)) as reader:
            return queries.balances(reader)

    def snapshot(self, path: Path) -> Path:
        """A backup of the ledger, as an administrator makes it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.agent.ledger)) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)
        return path

    def restore_version(self, backup: Path) -> None:
        """Restore a backup over the ledger."""
        for suffix in ("", "-wal", "-shm"):
            self.agent.ledger.with_name(self.agent.ledger.name + suffix).unlink(missing_ok=True)
        backup.rename(self.agent.ledger)


@dataclass
class SiteStack:
    """A site: its gateways, the cloud, and what must agree."""

    tenant: str
    site: str
    database_url: str
    cloud: Connection
    broker: PrivateBroker
    worker: WorkerProcess
    folder: Path
    make: Callable[..., Post]
    posts: list[Post] = field(default_factory=list)

    def events(self) -> int:
        """How many scans were made."""
        return sum(post.sent for post in self.posts)

    def agreed(self) -> bool:
        """Whether everything has settled, and all gateways show what the cloud shows."""
        there = snapshots.balances(self.cloud, self.tenant, self.site)
        return all(post.settled() for post in self.posts) and all(post.balances() == there for post in self.posts)

    def difference(self) -> str:
        """What does not agree yet."""
        there = snapshots.balances(self.cloud, self.tenant, self.site)
        lines = [
            f"{post.name} settled {post.settled()} "
            f"{list(stock.differences(post.balances().items(), there.items()))[:4]}"
            for post in self.posts
        ]
        return "; ".join(lines)

    def require_agreement(self, technician: int = 0) -> None:
        """Assert that gateways, cloud and definition agree, and that each scan is in the cloud once."""
        eventually(self.agreed, within_s=SETTLE_S, explain=self.difference)
        for post in self.posts:
            with closing(database.open_reader(post.agent.ledger)) as reader:
                entries = list(queries.entries(reader))
                assert queries.balances(reader) == stock.oracle(entries).on_hand
                assert audit.verify(reader).findings == []
        rows = [row for row in snapshots.entries(self.cloud) if row.tenant == self.tenant]
        assert sum(row.rows for row in rows) == sum(row.distinct for row in rows) == self.events() + technician
        events = self.cloud.execute(
            "SELECT count(DISTINCT (m.gateway_id, d.name, m.event)) FROM movement m JOIN device d USING (device_id) "
            "JOIN tenant t ON t.tenant_id = m.tenant_id WHERE t.name = %s",
            [self.tenant],
        ).fetchone()
        assert events == (self.events(),)

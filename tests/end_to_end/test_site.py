"""Gateways of one site, and gateways that lose their past: real agents, brokers, workers and TimescaleDB.

Broken when a restored backup, a cloned disk or a replaced gateway loses a scan or counts one twice, or when after
contact the gateways of a site and the cloud do not all show the stock that the definition gives.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloud_store import alarms, proof, registry
from cloud_store.connection import Connection, connect
from edge_agent import audit, database, queries
from edge_agent.booking import book
from edge_agent.cli import app as edge
from edge_agent.clock import SystemClock
from edge_agent.ledger import Ledger
from edge_agent.sql import statement
from tests.agent_process import AgentProcess, wait_for
from tests.edge_agent.devices import Scanner
from tests.end_to_end.stack import Worker
from tests.services import PrivateBroker
from wire_protocol import stock
from wire_protocol.stock import Cell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

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
        return self.agent.log_file.read_text().count(f'"{event}"')

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

    def put_back(self, backup: Path) -> None:
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
    folder: Path
    make: Callable[..., Post]
    posts: list[Post] = field(default_factory=list)

    def events(self) -> int:
        """How many scans were made."""
        return sum(post.sent for post in self.posts)

    def agreed(self) -> bool:
        """Whether everything has settled, and all gateways show what the cloud shows."""
        there = proof.balances(self.cloud, self.tenant, self.site)
        return all(post.settled() for post in self.posts) and all(post.balances() == there for post in self.posts)

    def difference(self) -> str:
        """What does not agree yet."""
        there = proof.balances(self.cloud, self.tenant, self.site)
        lines = [
            f"{post.name} settled {post.settled()} "
            f"{list(stock.differences(post.balances().items(), there.items()))[:4]}"
            for post in self.posts
        ]
        return "; ".join(lines)

    def require_agreement(self, technician: int = 0) -> None:
        """Assert that gateways, cloud and definition agree, and that each scan is in the cloud once."""
        wait_for(self.agreed, timeout_s=SETTLE_S, explain=self.difference)
        for post in self.posts:
            with closing(database.open_reader(post.agent.ledger)) as reader:
                entries = list(queries.entries(reader))
                assert queries.balances(reader) == stock.oracle(entries).on_hand
                assert audit.verify(reader).findings == []
        rows = [row for row in proof.entries(self.cloud) if row.tenant == self.tenant]
        assert sum(row.rows for row in rows) == sum(row.distinct for row in rows) == self.events() + technician
        events = self.cloud.execute(
            "SELECT count(DISTINCT (m.gateway_id, d.name, m.event)) FROM movement m JOIN device d USING (device_id) "
            "JOIN tenant t ON t.tenant_id = m.tenant_id WHERE t.name = %s", [self.tenant],
        ).fetchone()  # fmt: skip
        assert events == (self.events(),)


@pytest.fixture
def site(
    tmp_path: Path,
    database_url: str,
    private_broker: Callable[..., PrivateBroker],
    agents: Callable[..., AgentProcess],
    unique_name: Callable[..., str],
) -> Iterator[SiteStack]:
    """An empty site with a worker; `make(name)` adds a gateway, or another machine under a name that exists."""
    tenant, name = unique_name("tenant"), unique_name("site")
    broker = private_broker()
    worker = Worker("worker-1", database_url, broker.url, tmp_path).start()
    with ExitStack() as context, closing(connect(database_url, application="tests")) as cloud:
        registry.add_tenant(cloud, tenant)
        registry.add_site(cloud, tenant, name)

        def make(gateway: str | None = None, *, ledger: Path | None = None, device: str = "till-1") -> Post:
            new = gateway is None
            gateway = gateway or unique_name()
            if new:
                registry.add_gateway(cloud, tenant, name, gateway)
            local = private_broker(persistent=True)
            path = ledger or tmp_path / unique_name("machine") / "ledger.db"
            if ledger is None:
                with Ledger.create(path, gateway, SystemClock(), local_url=local.url, cloud_url=broker.url):
                    pass
            with closing(database.open_writer(path)) as connection, database.transaction(connection):
                connection.execute(statement("set_meta"), ("local_url", local.url))
                connection.execute(statement("insert_device"), (device, "scanner"))
            agent = agents(path, **SETTINGS).start()
            post = Post(gateway, agent, local, context.enter_context(Scanner(local.port, device)))
            stack.posts.append(post)
            return post

        stack = SiteStack(tenant, name, database_url, cloud, broker, tmp_path, make)
        yield stack
    worker.kill()


def test_gateways_of_a_site_show_the_same_stock_as_the_cloud(site: SiteStack) -> None:
    """Each works on what it knows while it is offline; after contact all know everything."""
    first, second = site.make(), site.make()
    for post in site.posts:
        post.scan(40)
    site.require_agreement()
    second.agent.kill()
    first.scan(30)
    book(second.agent.ledger, "count", "SKU-1", 5, location="A-01")
    book(second.agent.ledger, "pick", "SKU-2", 1, source="A-01")
    wait_for(first.settled, timeout_s=SETTLE_S)
    assert first.balances() != second.balances()
    second.agent.start()
    site.require_agreement(technician=2)
    shown = CliRunner().invoke(
        edge, ["history", "SKU-2", "--limit", "100", "--json", "--ledger", str(first.agent.ledger)]
    )
    rows = json.loads(shown.output)
    assert {row["gateway"] for row in rows} == {first.name, second.name}
    assert [(row["gateway"], row["in_cloud"]) for row in rows if row["kind"] == "pick"] == [(second.name, True)]


def test_a_restored_backup_fetches_what_it_lacks_and_goes_on_in_a_new_epoch(site: SiteStack) -> None:
    """Yesterday's backup over today's disk: what was shipped since comes back, what is scanned from now on counts."""
    restored, other = site.make(), site.make()
    restored.scan(30)
    site.require_agreement()
    backup = restored.snapshot(site.folder / "backup" / "ledger.db")
    restored.scan(25)
    other.scan(5)
    site.require_agreement()
    restored.agent.kill()
    restored.put_back(backup)
    for _ in range(12):  # as many frames as the cloud has, of another history
        book(restored.agent.ledger, "pick", "SKU-3", 1, source="A-01")
    restored.agent.start()
    restored.scan(20)
    site.require_agreement(technician=12)
    assert restored.times("epoch_opened") == 1
    kinds = {(alarm["gateway"], alarm["kind"]) for alarm in alarms.listing(site.cloud, limit=10, tenant=site.tenant)}
    assert kinds <= {(restored.name, "fork")}
    restored.scan(5)
    site.require_agreement(technician=12)


def test_a_cloned_disk_in_a_second_live_gateway_counts_beside_the_first(site: SiteStack) -> None:
    """Two machines under one name: neither may be lost, neither counted twice, and somebody must be told."""
    first = site.make()
    first.scan(20)
    site.require_agreement()
    copy = first.snapshot(site.folder / "clone" / "ledger.db")
    clone = site.make(first.name, ledger=copy, device="till-2")
    for _ in range(3):
        first.scan(15)
        clone.scan(10)
        wait_for(lambda: first.settled() and clone.settled(), timeout_s=SETTLE_S, explain=site.difference)
    site.require_agreement()
    assert first.times("epoch_opened") + clone.times("epoch_opened") >= 1
    assert [alarm["kind"] for alarm in alarms.listing(site.cloud, limit=10, tenant=site.tenant)] == ["fork"]


def test_a_replacement_with_an_empty_ledger_fetches_the_past_by_itself(site: SiteStack) -> None:
    """A technician who forgot to restore must not do harm, nor one who plugs the old disk in again."""
    old, other = site.make(), site.make()
    old.scan(20)
    other.scan(3)
    site.require_agreement()
    old.agent.kill()
    new = site.make(old.name, device="till-2")
    new.scan(15)
    site.posts.remove(old)
    lost = old.sent
    other.sent += lost  # counted where the totals are compared
    other.scanner.committed |= {f"old-{number}" for number in range(lost)}
    site.require_agreement()
    assert new.times("epoch_opened") <= 1, "the first frame may have waited for the answer"
    other.sent -= lost
    site.posts.append(old)
    old.agent.start()
    old.scan(7)
    site.require_agreement()

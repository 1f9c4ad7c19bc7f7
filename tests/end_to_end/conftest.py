"""The whole path on real servers: agents, brokers, workers and TimescaleDB, each a process that can be killed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from cloud_store.base import migrations
from cloud_store.base.connection import connect
from cloud_store.tenancy import registry
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from stocktide.demo.plan import DemoSite
from testbed import lossy_link
from testbed.agent_process import AgentProcess
from testbed.lossy_link import LossyPackets, ProxyThread
from testbed.scanner import Scanner
from testbed.services import PrivateBroker, PrivateDatabase, disk
from testbed.services.broker import anonymous_config
from testbed.worker_process import WorkerProcess
from tests.end_to_end.sites import SETTINGS, Post, SiteStack
from tests.end_to_end.stack import Build, Gateway, Stack

DEVICES = ("till-1", "till-2")
IMPATIENT = {
    "STOCKTIDE_EDGE_RESEND_DELAY_MS": "500",
    "STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX": "1",
}


@pytest.fixture
def build(
    tmp_path: Path,
    database_url: str,
    private_broker: Callable[..., PrivateBroker],
    private_database: Callable[..., PrivateDatabase],
    agents: Callable[..., AgentProcess],
    unique_name: Callable[..., str],
) -> Iterator[Build]:
    """Build a stack: two tenants, a gateway each, `workers` workers.

    `own_database` (with `disk_mb`, on a disk of that size) can be killed; `database` with `url` is one that the test
    has made. `link` is "proxy", "packets" (lost for real) or None for a direct connection. `persistent` gives the
    cloud's broker a memory on disk. `ledger_disk_mb` puts each ledger on a small disk of its own. `keepalive_s` is the
    agents'.
    """
    made: list[WorkerProcess] = []
    with ExitStack() as context:

        def make(
            *,
            workers: int = 1,
            own_database: bool = False,
            disk_mb: int | None = None,
            url: str | None = None,
            database: PrivateDatabase | None = None,
            link: str | None = None,
            persistent: bool = False,
            ledger_disk_mb: int | None = None,
            keepalive_s: int = 30,
        ) -> Stack:
            own = database or (private_database(disk_mb=disk_mb) if own_database else None)
            url = url or (own.url if own else database_url)
            if own:
                migrations.apply(own.url)
            broker, between, cloud_url = _cloud_link(link, context, private_broker, persistent=persistent)
            stack = Stack(broker, url, [], made, own, between)
            for _ in range(2):
                site = DemoSite(unique_name("tenant"), unique_name("site"), unique_name(), "")
                folder = tmp_path / site.gateway
                if ledger_disk_mb is not None:
                    folder = _small_disk(folder, ledger_disk_mb, context)
                local = private_broker(persistent=True)
                agent = agents(folder / "ledger.db", **IMPATIENT, STOCKTIDE_EDGE_KEEPALIVE_S=str(keepalive_s))
                stack.gateways.append(_gateway(site, url, cloud_url, local, agent, context))
            names = [f"worker-{number}" for number in range(workers)]
            made.extend(WorkerProcess(name, url, broker.url, tmp_path).start() for name in names)
            return stack

        yield make
    for worker in made:
        if worker.is_running:
            worker.kill()


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
    worker = WorkerProcess("worker-1", database_url, broker.url, tmp_path).start()
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

        stack = SiteStack(tenant, name, database_url, cloud, broker, worker, tmp_path, make)
        yield stack
    worker.kill()


def _cloud_link(
    kind: str | None, context: ExitStack, private_broker: Callable[..., PrivateBroker], *, persistent: bool
) -> tuple[PrivateBroker, ProxyThread | LossyPackets | None, str]:
    """The cloud's broker, what lies before it, and the address that gateways are given."""
    if kind == "packets":
        packets = context.enter_context(lossy_link.lossy_packets(seed=7))
        broker = private_broker(lambda port, at: f"{anonymous_config(port, at)}listener {port} {packets.address}\n")
        return broker, packets, f"mqtt://{packets.host}:{broker.port}"
    broker = private_broker(persistent=persistent)
    if kind is None:
        return broker, None, broker.url
    proxy = context.enter_context(ProxyThread(broker.port))
    return broker, proxy, proxy.url


def _small_disk(folder: Path, mb: int, context: ExitStack) -> Path:
    """A disk for one ledger; the agent's log, which a real gateway gives to the journal, is kept elsewhere."""
    place = folder / "disk"
    place.mkdir(parents=True)
    disk.mount(place, mb)
    context.callback(disk.unmount, place)
    (place / "agent.log").symlink_to(folder / "agent.log")
    return place


def _gateway(
    site: DemoSite, url: str, cloud_url: str, local: PrivateBroker, agent: AgentProcess, context: ExitStack
) -> Gateway:
    with closing(connect(url, application="tests")) as connection:
        registry.add_tenant(connection, site.tenant)
        registry.add_site(connection, site.tenant, site.name)
        registry.add_gateway(connection, site.tenant, site.name, site.gateway)
    with (
        Ledger.create(agent.ledger, site.gateway, SystemClock(), local_url=local.url, cloud_url=cloud_url) as ledger,
        database.transaction(ledger.connection),
    ):
        ledger.connection.executemany(statement("insert_device"), [(name, "scanner") for name in DEVICES])
    scanners = [context.enter_context(Scanner(local.port, name)) for name in DEVICES]
    return Gateway(site, agent.start(), local, scanners)

"""The demo, act by act: build, replay, cut, heal, settle, prove.

Invariant: however it ends, every process and server it started has ended too, unless it was asked to keep them.
"""

import asyncio
import contextlib
import json
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.ledger import database, queries
from firmware_sim.faults.proxy import FaultProxy, LinkState
from firmware_sim.fleet.fleet import Fleet
from firmware_sim.fleet.link import DEVICE
from stocktide.demo import devices, proof
from stocktide.demo.cloudside import Cloud
from stocktide.demo.errors import DemoError
from stocktide.demo.plan import CUT_SITE, SITES, TENANTS, DemoSite, Timing
from stocktide.demo.processes import READY_S_MAX, Processes
from stocktide.demo.screen import Picture, Screen, SiteRow
from stocktide.demo.servers import HOST, GatewayBroker, free_port, postgres
from stocktide.demo.trust import Trust
from wire_protocol.address import BrokerAddress

PICTURE_INTERVAL_S = 0.5
POLL_S = 0.1


@dataclass(slots=True)
class DemoGateway:
    """A site's gateway as the demo runs it: ledger, own broker, and the proxy its uplink goes through, if any."""

    site: DemoSite
    ledger: Path
    broker: GatewayBroker
    fleet: Fleet
    proxy: FaultProxy | None = None

    @property
    def is_cut(self) -> bool:
        """Whether its uplink is cut at present."""
        return self.proxy is not None and self.proxy.state is not LinkState.UP

    def status(self) -> dict[str, int]:
        """Entries and readings, frames sealed, and what the cloud has not acknowledged."""
        with contextlib.closing(database.open_reader(self.ledger)) as reader:
            found = queries.status(reader, self.ledger)
        streams = found["streams"].values()
        return {
            "entries": found["entries"] + found["readings"],
            "frames": sum(stream["sealed_frame"] for stream in streams),
            "waiting": sum(stream["waiting"] for stream in streams),
        }


@dataclass(slots=True)
class Demo:
    """The running demo."""

    folder: Path
    screen: Screen
    timing: Timing
    processes: Processes
    trust: Trust
    gateways: list[DemoGateway] = field(default_factory=list)
    cloud: Cloud = field(default_factory=lambda: Cloud("", ""))
    waiting_since: dict[str, float] = field(default_factory=dict)

    async def build(self, database_url: str, stack: AsyncExitStack) -> None:
        """Everything up to the first event."""
        self.cloud = Cloud(database_url, f"http://{HOST}:{free_port()}")
        environment = {"STOCKTIDE_DATABASE_URL": database_url} | self.trust.worker_environment()
        with self.screen.step(f"schema migrated; {len(TENANTS)} tenants, {len(SITES)} claims for their gateways"):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.trust.make_authority())
                tasks.create_task(self._register(environment))
        with self.screen.step("MQTT brokers: the cloud's, over TLS alone, and three gateways' own"):
            await self._start_brokers(environment, stack)
        with self.screen.step(f"worker by its certificate; HTTP API on {self.cloud.api_url}"):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.processes.start("worker", "cloud", "ingest", ready="lease", **environment))
                tasks.create_task(self._start_api(environment))
        with self.screen.step("three gateways enrolled by claim over TLS"):
            async with asyncio.TaskGroup() as tasks:
                for gateway in self.gateways:
                    tasks.create_task(self._enrol(gateway))
        with self.screen.step("edge agents of london, dublin and berlin, each on its ledger"):
            async with asyncio.TaskGroup() as tasks:
                for gateway in self.gateways:
                    tasks.create_task(self._start_agent(gateway))

    async def _start_api(self, environment: dict[str, str]) -> None:
        port = self.cloud.api_url.rpartition(":")[2]
        # The picture asks for stock twice a second, of each site.
        environment = environment | {"STOCKTIDE_API_REQUESTS_PER_MINUTE_MAX": "6000"}
        await self.processes.start("api", "cloud", "api", "--port", port, ready=None, **environment)
        async with asyncio.timeout(READY_S_MAX):
            while not await self.cloud.is_ready():
                self.processes.check()
                await asyncio.sleep(POLL_S)

    async def _start_brokers(self, environment: dict[str, str], stack: AsyncExitStack) -> None:
        brokers = {site: GatewayBroker(f"broker-{site.name}") for site in SITES}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.trust.start_broker(environment))
            for site, broker in brokers.items():
                tasks.create_task(broker.start(self.processes, ["agent"], devices.names(site, self.timing)))
        for site, broker in brokers.items():
            fleet = devices.fleet(site, BrokerAddress.parse(broker.url(DEVICE)), self.timing)
            self.gateways.append(DemoGateway(site, self.folder / site.gateway / "ledger.db", broker, fleet))
        cut = next(gateway for gateway in self.gateways if gateway.site is CUT_SITE)
        cut.proxy = await stack.enter_async_context(FaultProxy(HOST, self.trust.gateway_port))

    async def _register(self, environment: dict[str, str]) -> None:
        await self.processes.run("cloud", "migrate", **environment)
        async with asyncio.TaskGroup() as tasks:
            for tenant in TENANTS:
                tasks.create_task(self._register_tenant(tenant, environment))

    async def _register_tenant(self, tenant: str, environment: dict[str, str]) -> None:
        await self.processes.run("cloud", "tenant", "add", tenant, **environment)
        made = await self.processes.run(
            "cloud", "key", "create", "demo", "--tenant", tenant, "--days", "1", "--json", **environment
        )
        self.cloud.keys[tenant] = json.loads(made)["key"]
        for site in (site for site in SITES if site.tenant == tenant):
            await self.processes.run("cloud", "site", "add", "--tenant", tenant, site.name, **environment)
            await self.trust.claim(site, environment)

    async def _enrol(self, gateway: DemoGateway) -> None:
        known = [f"--device={name}" for name in devices.names(gateway.site, self.timing)]
        await self.processes.run(
            "edge",
            "init",
            "--ledger",
            str(gateway.ledger),
            "--gateway",
            gateway.site.gateway,
            *known,
            "--local",
            gateway.broker.url("agent"),
        )
        await self.trust.enrol(gateway.site, gateway.ledger)

    async def _start_agent(self, gateway: DemoGateway) -> None:
        # A gateway learned its broker's address when it enrolled; one goes by a proxy that can be cut.
        detour = [] if gateway.proxy is None else ["--cloud", f"mqtts://{HOST}:{gateway.proxy.port}"]
        await self.processes.start(
            f"agent-{gateway.site.name}",
            "edge",
            "run",
            "--ledger",
            str(gateway.ledger),
            "--mqtt-version",
            "3.1.1",
            *detour,
            ready="listening_to_devices",
            STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX="2",
        )

    async def play(self) -> None:
        """Replay, cut the uplink in the middle, heal it, and wait until the cloud has everything."""
        async with asyncio.TaskGroup() as tasks:
            acts = [tasks.create_task(self._cut_and_heal(), name="demo.cut")]
            acts += [
                tasks.create_task(self._play_site(gateway), name=f"demo.fleet[{gateway.site.name}]")
                for gateway in self.gateways
            ]
            while not all(act.done() for act in acts):
                self.processes.check()
                await self._show()
                await asyncio.sleep(PICTURE_INTERVAL_S)
        await self._settle()

    async def _play_site(self, gateway: DemoGateway) -> None:
        report = await gateway.fleet.run()
        if not report.is_complete:
            raise DemoError(f"Some events have no receipt: {report.missing[:3]}", hint=f"See {self.folder}")

    async def _cut_and_heal(self) -> None:
        proxy = next(gateway.proxy for gateway in self.gateways if gateway.proxy is not None)
        await asyncio.sleep(self.timing.cut_after_s)
        proxy.cut()
        await asyncio.sleep(self.timing.cut_for_s)
        proxy.heal()

    async def _settle(self) -> None:
        deadline = time.monotonic() + self.timing.settle_s_max
        while any(gateway.status()["waiting"] for gateway in self.gateways):
            if time.monotonic() > deadline:
                raise DemoError("The cloud did not acknowledge everything in time.", hint=f"See {self.folder}")
            await self._show()
            await asyncio.sleep(PICTURE_INTERVAL_S)
        await self._show(last=True)

    async def _show(self, *, last: bool = False) -> None:
        stored = await self.cloud.stored()
        rows = []
        for gateway in self.gateways:
            site, status = gateway.site, gateway.status()
            sent = gateway.fleet.snapshot()
            now = time.monotonic()
            since = self.waiting_since.setdefault(site.name, now) if status["waiting"] else now
            if not status["waiting"]:
                self.waiting_since.pop(site.name, None)
            rows.append(
                SiteRow(
                    site.name,
                    sent.events + sent.readings,
                    sent.receipts,
                    status["entries"],
                    status["waiting"],
                    status["frames"],
                    stored[site.gateway],
                    now - since,
                    "cut" if gateway.is_cut else "up",
                )
            )
        on_hand = []
        for site, sku, location in devices.watched(self.timing):
            quantity = await self.cloud.on_hand(site.tenant, site.name, sku, location)
            on_hand.append((site.name, sku, quantity or 0))
        self.screen.show(Picture(self._headline(), rows, on_hand), last=last)

    def _headline(self) -> str:
        if any(gateway.is_cut for gateway in self.gateways):
            return f"The uplink of {CUT_SITE.name} is cut; its devices go on."
        return "Replaying real transactions (UCI Online Retail, December 2010)."

    def prove(self) -> proof.Proof:
        """Compare what was sent with what the ledgers and the cloud hold."""
        snapshots = {gateway.site.gateway: gateway.fleet.snapshot() for gateway in self.gateways}
        sent = {name: (snapshot.events, snapshot.readings) for name, snapshot in snapshots.items()}
        return proof.prove(self.cloud.database_url, {gateway.site: gateway.ledger for gateway in self.gateways}, sent)

    def addresses(self) -> list[tuple[str, str]]:
        """Where everything is, for who keeps it running."""
        return [
            ("database", self.cloud.database_url),
            ("API", f"{self.cloud.api_url}/docs"),
            *((f"API key of {tenant}", key) for tenant, key in self.cloud.keys.items()),
            ("cloud's broker", self.trust.gateways_url),
            ("its authority", str(self.trust.bundle)),
            *((gateway.site.gateway, f"stocktide edge status --ledger {gateway.ledger}") for gateway in self.gateways),
            ("logs", str(self.folder)),
        ]


@contextlib.contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    """A new folder for ledgers, logs and the database; left behind when the demo failed, to find out why."""
    folder = Path(tempfile.mkdtemp(prefix="stocktide-demo-"))
    folder.chmod(0o755)  # PostgreSQL runs as its own user when we are root
    try:
        yield folder
    except asyncio.CancelledError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)


async def run(screen: Screen, *, keep: bool, timing: Timing) -> bool:
    """Run the demo; returns whether the proof holds.

    Raises:
        DemoError: something did not start, ended, or did not settle in time. The folder with the logs is left.
    """
    began = time.monotonic()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with _folder(keep=keep) as folder:
        screen.say("Stocktide demo: from a scan on a shelf to a number in the cloud\n")
        with ExitStack() as servers:
            with screen.step("PostgreSQL from its wheel"):
                database_url = await asyncio.to_thread(servers.enter_context, postgres(folder / "postgres"))
            async with AsyncExitStack() as stack:
                processes = await stack.enter_async_context(Processes(folder))
                demo = Demo(folder, screen, timing, processes, Trust(folder / "trust", processes))
                await demo.build(database_url, stack)
                with screen.live():
                    await demo.play()
                screen.say()
                shown = await asyncio.to_thread(demo.prove)
                screen.prove(shown)
                screen.say(_verdict(shown, time.monotonic() - began))
                if keep:
                    await _keep(screen, demo)
    return shown.holds


def _verdict(shown: proof.Proof, seconds: float) -> str:
    if shown.holds:
        return f"\nProved: every event counted once, edge and cloud agree on every balance. {seconds:.0f} s in all."
    return f"\nNot proved: edge and cloud differ. {seconds:.0f} s in all."


async def _keep(screen: Screen, demo: Demo) -> None:
    screen.say("\nEverything is left running:\n")
    width = max(len(name) for name, _ in demo.addresses())
    for name, address in demo.addresses():
        screen.say(f"  {name:<{width}}  {address}")
    screen.say("\nCtrl-C ends it.")
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()

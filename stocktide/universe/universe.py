"""One universe: built from a seed, lived through, healed, and looked at.

Invariant: the seed, the size and the planted bug determine every line of the trace.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from cloud_store.arrivals import Gateway as RegisteredGateway
from cloud_store.leases import Survey
from edge_agent.errors import EdgeError
from stocktide.universe.chaos import Chaos
from stocktide.universe.checks import Checks, Violation
from stocktide.universe.devices import Device
from stocktide.universe.gateway import Gateway
from stocktide.universe.network import Network
from stocktide.universe.steps import HOUR_MS, START_MS, Schedule, Trace, clock_face
from stocktide.universe.store import Store
from stocktide.universe.weather import CALM, draw
from stocktide.universe.worker import Worker
from stocktide.universe.world import World
from wire_protocol import names, topics
from wire_protocol.errors import WireError
from wire_protocol.messages import GatewayStatus
from wire_protocol.topics import Channel

DEVICES: Final = 2
WORKERS: Final = 2
GATEWAYS_PER_SITE: Final = 2
BURST_EVENTS: Final = 4
BURST_GAP_MS_MAX: Final = 4_000
SETTLE_MS: Final = 90 * 60_000
LOOK_MS: Final = 60_000
LAST_BURST_MS: Final = 300


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    gateways: int = 3
    hours: float = 24.0
    events_per_hour: float = 12.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one universe; `problem` is None when every invariant held."""

    seed: int
    hours: float
    events: int
    steps: int
    messages: int
    commits: int
    seconds: float
    digest: str
    invariant: str | None = None
    problem: str | None = None
    at: str | None = None
    trace: tuple[str, ...] = ()


class Universe:
    """Gateways with their devices, a broker, workers and a database."""

    def __init__(self, seed: int, size: Size, echo: Callable[[str], None] | None = None) -> None:
        schedule = Schedule()
        self.size, self.checks, self.stormy = size, Checks(), True
        self.world = World(seed=seed, schedule=schedule, trace=Trace(schedule, echo), checks=self.checks)
        self.world.weather = draw(self.world.rng("weather"))
        self.network, self.store = Network(self.world), Store()
        self._rng = self.world.rng("people")
        self._deaf: set[str] = set()
        self.gateways: dict[str, Gateway] = {}
        self.workers: list[Worker] = []
        for number in range(size.gateways):
            self._add_gateway(f"gw-{number + 1}", number // GATEWAYS_PER_SITE)
        self.registry = {
            name: RegisteredGateway(number, name, 1, gateway.site, active=True)
            for number, (name, gateway) in enumerate(self.gateways.items(), 1)
        }
        self.workers += [Worker(self.world, self, f"worker-{number + 1}") for number in range(WORKERS)]

    def _add_gateway(self, name: str, site: int) -> None:
        epoch = names.ulid(START_MS, self.world.rng(f"{name}.epoch").randbytes(10))
        gateway = self.gateways[name] = Gateway(self.world, self.network, name, site, epoch)
        gateway.uplink.publish = lambda topic, payload: self.network.send(
            f"{name}.link", payload, lambda arrived: self._route(topic, arrived), over=name
        )
        gateway.uplink.will = lambda: self._last_will(gateway)
        for number in range(DEVICES):
            device = Device(self.world, self.network, gateway, f"{name}-d{number + 1}")
            gateway.devices[device.name] = device
        self.checks.gateways[name] = gateway

    # --- the broker ---------------------------------------------------------------------------------------------

    def _route(self, topic: str, payload: bytes) -> None:
        """The broker hands a message to whoever has subscribed to its shard."""
        parsed = topics.parse(topic)
        assert isinstance(parsed, topics.LinkTopic)  # noqa: S101 - gateways publish nothing else
        shard = topics.shard(parsed.gateway)
        # A worker that has just lost a lease may still be subscribed, so at times both hear.
        both = self.world.happens("overlap", self.world.weather.duplicate)
        for worker in self.workers:
            if worker.alive and (both or shard in worker.shards) and worker.name not in self._deaf:
                worker.guarded(partial(worker.hear, topic, payload))

    def _last_will(self, gateway: Gateway) -> None:
        status = GatewayStatus(state="offline", epoch=gateway.ledger.epoch, version="virtual")
        self._route(topics.link(gateway.name, Channel.STATUS), status.encode())

    def publish(self, gateway: str, payload: bytes) -> None:
        """A worker publishes on a gateway's acknowledgement topic."""
        self.network.send(f"{gateway}.ack", payload, self.gateways[gateway].uplink.receive, over=gateway)

    def epochs(self) -> dict[str, str]:
        """The epoch each gateway has announced."""
        return {name: gateway.ledger.epoch for name, gateway in self.gateways.items()}

    def survey(self, worker: Worker) -> Survey:
        """The leases as the database sees them."""
        others: set[int] = set()
        for other in self.workers:
            if other is not worker:
                others |= other.shards
        live = sum(1 for each in self.workers if each.alive)
        return Survey(live, worker.shards, frozenset(others))

    def wipe_broker(self) -> None:
        """The cloud's broker restarts empty; everybody connects and subscribes again."""
        self.world.trace("broker", "restarts empty")
        self.network.wipe()
        for gateway in self.gateways.values():
            self.notice(gateway)
        for worker in self.workers:
            self._deaf.add(worker.name)
            self.world.schedule.after(self._rng.randint(100, 20_000), partial(self._hear_again, worker))

    def _hear_again(self, worker: Worker) -> None:
        self._deaf.discard(worker.name)
        if worker.alive:
            worker.resubscribed()

    def notice(self, gateway: Gateway) -> None:
        """A gateway notices that its link is gone."""
        if gateway.alive and gateway.uplink.online:
            gateway.uplink.lose_link()
            gateway.uplink.connect_soon()

    def heal_link(self, gateway: Gateway) -> None:
        """The link is back."""
        if gateway.name in self.network.cut:
            gateway.note("has a link again")
            self.network.cut.discard(gateway.name)
            if gateway.alive:
                gateway.uplink.connect_soon()

    # --- the database -------------------------------------------------------------------------------------------

    def lose_database(self) -> None:
        """The database is away."""
        self.world.trace("database", "is away")
        self.store.away = True
        self.store.session += 1
        for worker in self.workers:
            worker.session_lost()

    def heal_database(self) -> None:
        """It is back, with everything it had."""
        if self.store.away:
            self.world.trace("database", "is back")
            self.store.away = False

    def fail_over(self, commits: int) -> None:
        """A replica takes over that lacks the last commits."""
        lacked = self.store.fail_over(commits)
        self.checks.stepped_back()
        self.world.trace("database", f"fails over to a replica that lacks {lacked} commits")
        for worker in self.workers:
            worker.session_lost()

    # --- life ---------------------------------------------------------------------------------------------------

    def live(self) -> None:
        """Live through the storm, heal, settle, and look at everything.

        Raises:
            Violation: an invariant does not hold.
        """
        for gateway in self.gateways.values():
            self._plan_burst(gateway)
            # The last scans are made in the storm's last second: what they lose, only the calm can bring.
            last_ms = round(self.size.hours * HOUR_MS) - LAST_BURST_MS
            self.world.schedule.after(last_ms, partial(self._scan_all, gateway))
        Chaos(self).start()
        self.world.schedule.run_until(START_MS + round(self.size.hours * HOUR_MS))
        self._heal()
        self._settle()
        self.checks.finish(self.store)

    def _plan_burst(self, gateway: Gateway) -> None:
        rate_per_h = self.size.events_per_hour / BURST_EVENTS
        self.world.schedule.after(self._rng.expovariate(rate_per_h) * HOUR_MS, lambda: self._burst(gateway))

    def _burst(self, gateway: Gateway) -> None:
        if not self.stormy:
            return
        devices, at_ms = list(gateway.devices.values()), 0
        for _ in range(self._rng.randint(1, 2 * BURST_EVENTS - 1)):
            self.world.schedule.after(at_ms, self._rng.choice(devices).scan)
            at_ms += self._rng.choice((0, 1, self._rng.randint(1, BURST_GAP_MS_MAX)))
        self._plan_burst(gateway)

    @staticmethod
    def _scan_all(gateway: Gateway) -> None:
        for device in gateway.devices.values():
            device.scan()

    def _heal(self) -> None:
        self.world.trace("universe", "heals")
        self.stormy, self.world.weather = False, CALM
        self.heal_database()
        for gateway in self.gateways.values():
            gateway.disk.free()
            self.heal_link(gateway)

    def _settle(self) -> None:
        end_ms = self.world.now_ms + SETTLE_MS
        while (reason := self.checks.unsettled(self.store)) is not None:
            if self.world.now_ms >= end_ms:
                raise Violation("settles", f"{SETTLE_MS // 60_000} minutes after all faults ended, {reason}")
            self.world.schedule.run_until(self.world.now_ms + LOOK_MS)

    def close(self) -> None:
        """Give the disks back."""
        for gateway in self.gateways.values():
            gateway.disk.close()


def run(seed: int, size: Size, echo: Callable[[str], None] | None = None) -> Outcome:
    """Live through one universe and report."""
    began = time.perf_counter()  # for the figure of speed alone
    universe = Universe(seed, size, echo)
    problem: Violation | None = None
    try:
        universe.live()
    except Violation as violation:
        problem = violation
    except (AssertionError, EdgeError, WireError) as error:
        problem = Violation("own assertion", f"{type(error).__name__}: {error}")
    finally:
        universe.close()
    schedule, elapsed_ms = universe.world.schedule, universe.world.now_ms - START_MS
    return Outcome(
        seed=seed,
        hours=elapsed_ms / HOUR_MS,
        events=sum(map(len, universe.checks.said.values())),
        steps=schedule.steps_done,
        messages=universe.network.carried,
        commits=universe.checks.commits,
        seconds=time.perf_counter() - began,
        digest=universe.world.trace.digest,
        invariant=problem.invariant if problem else None,
        problem=problem.detail if problem else None,
        at=clock_face(elapsed_ms).strip() if problem else None,
        trace=tuple(universe.world.trace.lines) if problem else (),
    )

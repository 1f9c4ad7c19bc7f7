"""Never lost, never twice: real servers and processes, broken at random moments under continuous load.

Afterwards devices, ledgers and cloud agree, each event is counted once, and both stores hold the stock that the oracle
makes of the ledger's entries. The moments are drawn from a seed that is printed; STOCKTIDE_FAULT_SEED replays it, as
far as real processes can be replayed.
"""

import os
import random
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil
import pytest

from cloud_store.base.connection import connect
from cloud_store.reports import snapshots
from testbed import lossy_link
from testbed.eventually import eventually
from testbed.lossy_link import LossyPackets, ProxyThread
from testbed.services import PrivateBroker, PrivateDatabase, disk
from tests.end_to_end.stack import Build, Gateway, Load, Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SEED_VARIABLE = "STOCKTIDE_FAULT_SEED"
EVENTS_PER_S = 400
SURGE_SCANS = 200
OBSERVED_S = 60.0

Strike = Callable[[Stack, Load, random.Random], None]


def nothing_to_see(_: Stack) -> None:
    """A fault that cannot fail to strike: a killed process is dead."""


@dataclass(frozen=True)
class Fault:
    """Something that breaks `strikes` times. `strike` also mends it; `needs` is how the stack is built for it.

    `require_seen` fails when the fault had no effect: a fault that nobody noticed proves nothing.
    """

    name: str
    strike: Strike
    strikes: int = 4
    needs: dict[str, Any] = field(default_factory=dict)
    require_seen: Callable[[Stack], None] = nothing_to_see
    events_per_s: float = EVENTS_PER_S


def pause(load: Load, chance: random.Random, longest_s: float = 1.0) -> None:
    """Let the load go on while something is broken."""
    load.go_on(chance.uniform(0.05, longest_s))


def kill_agent(stack: Stack, load: Load, chance: random.Random) -> None:
    """Power cut at the gateway: the ledger is whole at any instruction, and the cloud's cursor fits it."""
    gateway = chance.choice(stack.gateways)
    # In the middle of a surge: some of it committed, some in the writer's hands, some still in the broker's.
    before = gateway.receipts()
    load.surge(SURGE_SCANS)
    eventually(lambda: gateway.receipts() > before + chance.randrange(SURGE_SCANS))
    gateway.agent.kill()
    pause(load, chance)
    gateway.agent.start()


def kill_worker(stack: Stack, load: Load, chance: random.Random) -> None:
    """Mid-transaction: rolled back, not acknowledged, sent again; leases vanish with the session."""
    worker = chance.choice(stack.workers)
    worker.kill()
    pause(load, chance)
    worker.start()


def kill_cloud_broker(stack: Stack, load: Load, chance: random.Random) -> None:
    """Nothing depends on a broker's memory."""
    stack.cloud_broker.kill()
    pause(load, chance)
    stack.cloud_broker.start()


def wipe_cloud_broker(stack: Stack, load: Load, chance: random.Random) -> None:
    """Nor on what it saved."""
    stack.cloud_broker.kill()
    stack.cloud_broker.forget()
    pause(load, chance)
    stack.cloud_broker.start()


def wipe_gateway_broker(stack: Stack, load: Load, chance: random.Random) -> None:
    """Devices keep an event until its receipt: the gateway's own broker may forget all it has taken from them."""
    broker: PrivateBroker = chance.choice(stack.gateways).broker
    broker.kill()
    broker.forget()
    pause(load, chance)
    broker.start()


def kill_database(stack: Stack, load: Load, chance: random.Random) -> None:
    """Nothing is acknowledged while it is down; what was acknowledged is there after recovery."""
    assert stack.database is not None
    stack.database.kill()
    pause(load, chance)
    stack.database.start()


def cut_link(stack: Stack, load: Load, chance: random.Random) -> None:
    """Both ends notice."""
    assert isinstance(stack.link, ProxyThread)
    stack.link.cut()
    pause(load, chance)
    stack.link.heal()


def half_open_link(stack: Stack, load: Load, chance: random.Random) -> None:
    """Nobody is told: frames go out, nothing comes back, and only its own timers tell the agent that it is alone."""
    assert isinstance(stack.link, ProxyThread)
    downs = [gateway.times("uplink_down") for gateway in stack.gateways]
    ups = [gateway.times("uplink_up") for gateway in stack.gateways]
    stack.link.blackhole()
    eventually(lambda: all(g.times("uplink_down") > n for g, n in zip(stack.gateways, downs, strict=True)))
    pause(load, chance)
    stack.link.heal()
    eventually(lambda: all(g.times("uplink_up") > n for g, n in zip(stack.gateways, ups, strict=True)))


def suffer_lossy_link(_stack: Stack, load: Load, _chance: random.Random) -> None:
    """It is bad all the time; see `weather`."""
    load.go_on(2.0)


def fill_gateway_disk(stack: Stack, load: Load, chance: random.Random) -> None:
    """Events are refused at the device hop, not lost: no receipt, so devices keep them; nobody crashes."""
    gateway = chance.choice(stack.gateways)
    before = gateway.times("devices_refused")
    with full_disk(gateway):
        eventually(lambda: gateway.times("devices_refused") > before, within_s=OBSERVED_S)
        pause(load, chance)
    eventually(lambda: gateway.times("devices_accepted_again") > before, within_s=OBSERVED_S)


def kill_agent_on_full_disk(stack: Stack, load: Load, chance: random.Random) -> None:
    """What an agent held in its memory because it could not commit it was never promised to anybody."""
    gateway = chance.choice(stack.gateways)
    before = gateway.times("devices_refused")
    with full_disk(gateway):
        eventually(lambda: gateway.times("devices_refused") > before, within_s=OBSERVED_S)
        pause(load, chance)
        gateway.agent.kill()
    gateway.agent.start()


@contextmanager
def full_disk(gateway: Gateway) -> Iterator[None]:
    """No room for the ledger: its small disk is filled, or, without such a disk, files may not grow any more."""
    folder, process = gateway.agent.ledger.parent, gateway.agent.child
    if folder.is_mount():
        disk.fill(folder)
        yield
        disk.free(folder)
        return
    agent = psutil.Process(process.pid)
    soft, hard = agent.rlimit(psutil.RLIMIT_FSIZE)
    agent.rlimit(psutil.RLIMIT_FSIZE, (4096, hard))
    yield
    if agent.is_running():
        agent.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))


def fill_database_disk(stack: Stack, load: Load, chance: random.Random) -> None:
    """Merges fail, or the whole server when its log finds no room; nothing is acknowledged until there is room."""
    assert stack.database is not None
    before = troubles(stack)
    disk.fill(stack.database.data)
    eventually(lambda: troubles(stack) > before, within_s=OBSERVED_S)
    pause(load, chance)
    disk.free(stack.database.data)
    # A server that finds no room for its log while it recovers gives up.
    eventually(partial(answers, stack.database), within_s=OBSERVED_S)


def answers(database: PrivateDatabase) -> bool:
    """Whether a server is there; one that has given up is started."""
    database.start()
    return database._is_ready()


def strike_anything(stack: Stack, load: Load, chance: random.Random) -> None:
    """Two things at once: what one fault is survived by may stand in the way of the other."""
    kills = (kill_agent, kill_worker, wipe_cloud_broker, wipe_gateway_broker, kill_database, cut_link)
    first, second = chance.sample(kills, 2)
    print(f"  {first.__name__}, {second.__name__}")  # noqa: T201 - shown when the test fails

    with ThreadPoolExecutor(2) as pool:
        chances = [random.Random(chance.random()) for _ in range(2)]
        for done in [pool.submit(kill, stack, load, own) for kill, own in zip((first, second), chances, strict=True)]:
            done.result()


def troubles(stack: Stack) -> int:
    """How often workers could not merge, or lost the session that holds their leases."""
    return sum(worker.times("merge_failed") + worker.times("leases_lost") for worker in stack.workers)


def database_missed(stack: Stack) -> None:
    """The worker has noticed."""
    assert troubles(stack) > 0


def uplinks_broke(stack: Stack) -> None:
    """The agents have noticed."""
    assert all(gateway.times("uplink_up") > 1 for gateway in stack.gateways)


def packets_were_lost(stack: Stack) -> None:
    """The link was bad."""
    if isinstance(stack.link, LossyPackets):
        assert stack.link.lost > 0.1 * stack.link.passed > 0


LOSSY = lossy_link.kind()
SMALL_DISKS = disk.can_mount()
NEEDS_SMALL_DISKS = pytest.mark.skipif(not SMALL_DISKS, reason="only root can mount a small disk")
FAULTS = [
    Fault("agent-killed", kill_agent),
    Fault("worker-killed", kill_worker),
    Fault("one-of-two-workers-killed", kill_worker, needs={"workers": 2}),
    Fault("broker-killed", kill_cloud_broker, require_seen=uplinks_broke),
    Fault("broker-killed-and-wiped", wipe_cloud_broker, needs={"persistent": True}, require_seen=uplinks_broke),
    Fault("gateway-broker-killed-and-wiped", wipe_gateway_broker),
    Fault("database-killed", kill_database, needs={"own_database": True}, require_seen=database_missed),
    Fault("link-cut", cut_link, needs={"link": "proxy"}, require_seen=uplinks_broke),
    Fault(
        "link-half-open",
        half_open_link,
        strikes=1,
        needs={"link": "proxy", "keepalive_s": 5},
        require_seen=uplinks_broke,
    ),
    Fault(
        f"link-lossy-{LOSSY}",
        suffer_lossy_link,
        needs={"link": LOSSY},
        require_seen=packets_were_lost,
        events_per_s=150,
    ),
    Fault(
        f"agent-killed-on-full-disk-{'tmpfs' if SMALL_DISKS else 'rlimit'}",
        kill_agent_on_full_disk,
        strikes=2,
        needs={"ledger_disk_mb": 16} if SMALL_DISKS else {},
    ),
    Fault(
        f"gateway-disk-full-{'tmpfs' if SMALL_DISKS else 'rlimit'}",
        fill_gateway_disk,
        strikes=3,
        needs={"ledger_disk_mb": 16} if SMALL_DISKS else {},
    ),
    Fault(
        "anything",
        strike_anything,
        needs={"own_database": True, "link": "proxy", "workers": 2, "persistent": True},
    ),
]
DATABASE_DISK_FULL = Fault(
    "database-disk-full-tmpfs", fill_database_disk, strikes=2, needs={"own_database": True, "disk_mb": 250}
)


@pytest.fixture
def chance() -> random.Random:
    """The moments, and who is struck."""
    seed = os.environ.get(SEED_VARIABLE) or secrets.token_hex(4)
    print(f"replay the moments with {SEED_VARIABLE}={seed}")  # noqa: T201 - shown when the test fails
    return random.Random(seed)


@pytest.mark.parametrize(
    "fault",
    [
        *(pytest.param(fault, id=fault.name) for fault in FAULTS),
        pytest.param(DATABASE_DISK_FULL, id=DATABASE_DISK_FULL.name, marks=NEEDS_SMALL_DISKS),
    ],
)
def test_whatever_breaks_nothing_is_lost_and_nothing_counts_twice(
    build: Build, fault: Fault, chance: random.Random
) -> None:
    """The promise of the whole system, for one fault at random moments under load."""
    stack = build(**fault.needs)
    with Load(stack, fault.events_per_s).running() as load, fault_rates(stack, fault):
        for _ in range(fault.strikes):
            moment_s = chance.uniform(0.1, 1.2)
            print(f"{fault.name} after {moment_s:.3f} s more of load")  # noqa: T201 - shown when the test fails
            load.go_on(moment_s)
            fault.strike(stack, load, chance)
        load.go_on(0.5)
    stack.require_agreement()
    fault.require_seen(stack)
    # The database is durable, so what was acknowledged is there: to send it again would mean that it was not.
    assert [gateway.times("cloud_stepped_back") for gateway in stack.gateways] == [0, 0]


def fault_rates(stack: Stack, fault: Fault) -> Any:
    """Where packets cannot be lost for real, a proxy is disturbed while the load runs."""
    if fault.strike is suffer_lossy_link and isinstance(stack.link, ProxyThread):
        return lossy_link.lossy_proxy(stack.link, seed=7)
    return nullcontext()


def test_a_failover_to_a_replica_that_lags_loses_nothing(
    build: Build, private_database: Callable[..., PrivateDatabase], chance: random.Random
) -> None:
    """What the replica had not received comes again from the gateways' retained frames, and counts once.

    The workers find the new primary by themselves: both servers are in their address.
    """
    primary = private_database()
    replica = private_database(primary=primary)
    url = f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{replica.port}/postgres"
    stack = build(database=primary, url=f"{url}?target_session_attrs=read-write", workers=2)
    with Load(stack, EVENTS_PER_S).running() as load:
        load.go_on(chance.uniform(1.0, 2.0))
        eventually(lambda: entries_in(replica.url) > 0)
        replica.stop_replicating()
        load.go_on(chance.uniform(0.5, 2.0))
        # Both gateways have acknowledgements for what the replica will never get from the primary.
        behind = entries_in(replica.url)
        eventually(lambda: entries_in(primary.url) > behind + 200)
        acked = [gateway.ledger()["acked_frame"] for gateway in stack.gateways]
        primary.kill()
        load.go_on(chance.uniform(0.1, 1.0))
        replica.promote()
        load.go_on(1.0)
    stack.require_agreement()
    for gateway, frame in zip(stack.gateways, acked, strict=True):
        steps = [
            line["frame"]
            for line in gateway.agent.log()
            if line["event"] == "cloud_stepped_back" and line["stream"] == "ledger"
        ]
        assert steps, "the cloud's cursor did not step back"
        assert min(steps) < frame


def entries_in(url: str) -> int:
    """How many entries a database has."""
    with closing(connect(url, application="tests")) as connection:
        return sum(row.rows for row in snapshots.entries(connection))

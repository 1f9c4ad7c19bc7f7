"""The bounds of the edge agent, each reached: what is beyond it waits, is refused or is dropped and counted.

The bounds that are reached in the tests of their own parts are marked there.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from edge_agent.devices.intake import SUBSCRIPTIONS, Intake, Token
from edge_agent.devices.mqtt import DeviceBroker
from edge_agent.devices.notices import Notices
from edge_agent.ledger import database, queries, streams
from edge_agent.ledger.booking import book
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from edge_agent.ledger.writer import Append
from edge_agent.signals import Signals
from testbed.agent_process import AgentProcess
from testbed.eventually import eventually
from testbed.hand_clock import HandClock
from testbed.loopback_cloud import LoopbackCloud
from testbed.scanner import Scanner
from testbed.services import PrivateBroker
from tests.bounds.clients import Doorkeeper
from wire_protocol.address import BrokerAddress
from wire_protocol.messages import DeviceEvent, DeviceReading
from wire_protocol.topics import Channel

pytestmark = [pytest.mark.slow]

Agents = Callable[..., AgentProcess]
Brokers = Callable[..., PrivateBroker]


def new_ledger(path: Path, gateway: str, *devices: str, **facts: str) -> Path:
    """A ledger with devices."""
    with Ledger.create(path, gateway, SystemClock(), **facts) as ledger, database.transaction(ledger.connection):
        ledger.connection.executemany(statement("insert_device"), [(name, "scanner") for name in devices])
    return path


@dataclass
class StuckWriter:
    """A writer whose disk is so slow that it never commits: it only takes what it is given."""

    taken: list[Token] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def append(self, _draft: object, token: Token) -> None:
        """Part of `LedgerWriter`."""
        with self.changed:
            self.taken.append(token)
            self.changed.notify_all()

    def wait_for(self, number: int) -> None:
        """Wait until so many events are here."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.taken) >= number, 60)


@pytest.mark.bound("edge.local_inflight_max")
def test_the_broker_gives_no_more_than_the_agent_has_room_for(private_broker: Brokers) -> None:
    """Beyond this the broker keeps the events, on its disk; a slow disk must not fill the agent's memory."""
    broker, writer = private_broker(), StuckWriter()
    side = DeviceBroker(
        BrokerAddress.parse(broker.url), "gw-1", SUBSCRIPTIONS, mqtt_5=True, keepalive_s=30, inflight_max=5
    )
    intake = Intake(cast("Any", writer), {"till-1"}, side, Notices(side), Signals(), clock=HandClock())
    side.received.connect(intake.receive)
    with side, Scanner(broker.port, "till-1") as scanner, Scanner(broker.port, "echo") as witness:
        assert side.connected.wait(60)
        heard, listening = threading.Semaphore(0), threading.Event()
        client = witness._client
        assert client is not None
        client.on_message = lambda *_: heard.release()
        client.on_subscribe = lambda *_: listening.set()
        client.subscribe("stocktide/v1/dev/till-1/event", qos=1)
        assert listening.wait(60)
        for number in range(50):
            scanner.scan(f"e-{number}")
        for _ in range(50):
            assert heard.acquire(timeout=60)  # the broker has given everything to whoever has room
        writer.wait_for(5)
        assert len(writer.taken) == 5
        intake.committed([Append(cast("Any", None), token) for token in writer.taken[:3]])
        writer.wait_for(8)
        assert len(writer.taken) == 8


@pytest.mark.bound("edge.window_frames_max")
@pytest.mark.bound("edge.resend_delay_ms_max")
def test_without_acknowledgements_a_full_window_is_repeated_and_nothing_beyond_it(
    tmp_path: Path, private_broker: Brokers, agents: Agents
) -> None:
    """A gateway that sends on would fill the broker; one that doubles its delay for ever would never come back."""
    local, broker = private_broker(), private_broker()
    path = new_ledger(tmp_path / "ledger.db", "gw-1", "till-1", local_url=local.url, cloud_url=broker.url)
    with LoopbackCloud(broker.port, "gw-1", answering=False) as cloud:
        frames: list[bytes] = []
        cloud._merge = lambda stream, encoded: frames.append(encoded)  # type: ignore[method-assign]  # noqa: ARG005
        agent = agents(
            path,
            STOCKTIDE_EDGE_WINDOW_FRAMES_MAX="3",
            STOCKTIDE_EDGE_FRAME_ENTRIES_MAX="1",
            STOCKTIDE_EDGE_SEAL_DELAY_MS="0",
            STOCKTIDE_EDGE_RESEND_DELAY_MS="500",
            STOCKTIDE_EDGE_RESEND_DELAY_MS_MAX="500",
        ).start()
        eventually(lambda: any(line["event"] == "uplink_up" for line in agent.log()))
        with Scanner(local.port, "till-1") as scanner:
            for number in range(1, 7):
                scanner.scan(f"e-{number}")
                full = min(number, 3)
                cloud.wait_for(lambda full=full: len(set(frames)) == full)  # type: ignore[misc]
        # Doubled each time, the delay before the eighth would be a minute.
        cloud.wait_for(lambda: frames.count(frames[0]) >= 8)
        assert len(set(frames)) == 3
    with closing(database.open_reader(path)) as reader:
        assert streams.position(reader, "ledger").sealed_frame == 3


@pytest.mark.bound("edge.frame_entries_max")
def test_a_frame_of_a_quiet_link_is_sealed_when_it_is_full(
    tmp_path: Path, private_broker: Brokers, agents: Agents
) -> None:
    """Long before its delay is over: otherwise a burst of scans would wait for nothing."""
    broker = private_broker()
    path = new_ledger(tmp_path / "ledger.db", "gw-1", local_url="mqtt://127.0.0.1:9", cloud_url=broker.url)
    with LoopbackCloud(broker.port, "gw-1") as cloud:
        agents(path, STOCKTIDE_EDGE_FRAME_ENTRIES_MAX="4", STOCKTIDE_EDGE_SEAL_DELAY_MS="60000").start("uplink_up")
        for number in range(1, 13):
            book(path, "receive", "tea", 1, destination="A-01")
            cloud.wait_for(lambda full=number // 4: len(cloud.headers) >= full)  # type: ignore[misc]
        assert [header.count for header in cloud.headers] == [4, 4, 4]


@pytest.mark.bound("edge.reconnect_delay_s_max")
@pytest.mark.parametrize("polite", [True, False])
def test_a_gateway_that_is_refused_asks_again_and_again(tmp_path: Path, agents: Agents, *, polite: bool) -> None:
    """Doubled without an end, the pause after a night's outage would be weeks."""
    with Doorkeeper(polite=polite) as listener:
        path = new_ledger(tmp_path / "ledger.db", "gw-1", local_url="mqtt://127.0.0.1:9", cloud_url=listener.url)
        agents(path, STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX="0.1").start("agent_started")
        # Unbounded, the pause before the fourteenth would be more than an hour.
        eventually(lambda: listener.attempts >= 14)


@pytest.mark.bound("edge.readings_max")
@pytest.mark.bound("edge.dead_letters_max")
def test_floods_of_readings_and_of_garbage_cost_no_movement_and_are_reported(
    tmp_path: Path, private_broker: Brokers, agents: Agents
) -> None:
    """A sensor gone mad and a device that talks nonsense, while the cloud takes nothing: scans go on.

    Readings are thinned and dropped, dead letters dropped, both counted and told in the gateway's status.
    """
    local, cloud_broker = private_broker(persistent=True), private_broker()
    path = new_ledger(
        tmp_path / "ledger.db", "gw-1", "till-1", "probe-1", local_url=local.url, cloud_url=cloud_broker.url
    )
    with ExitStack() as stack:
        cloud = stack.enter_context(LoopbackCloud(cloud_broker.port, "gw-1", answering=False))
        agents(
            path,
            STOCKTIDE_EDGE_READINGS_MAX="1000",
            STOCKTIDE_EDGE_DEAD_LETTERS_MAX="100",
            STOCKTIDE_EDGE_WINDOW_FRAMES_MAX="1",
            STOCKTIDE_EDGE_STATUS_INTERVAL_S="1",
        ).start()
        till, probe = (stack.enter_context(Scanner(local.port, name)) for name in ("till-1", "probe-1"))
        for number in range(3_000):
            probe.say(DeviceReading(id=f"r-{number}", values={"t_c": 1.0}).encode(), Channel.DEVICE_READING)
            if number % 10 == 0:
                till.say(b"{nonsense %d" % number)
                till.scan(f"e-{number}")
        assert till.wait_for_receipts(300)
        with closing(database.open_reader(path)) as reader:
            # Upkeep looks every ten seconds; in between a ring may be larger.
            eventually(lambda: queries.counters(reader).get("dead_letters_dropped", 0) == 200)
            eventually(lambda: int(queries.status(reader, path)["readings"]) == 1_000)
            facts = queries.status(reader, path)
        cloud.wait_for(lambda: cloud.statuses[-1].readings_dropped == facts["dropped"]["readings_dropped"])
        status = cloud.statuses[-1]
    # One frame of readings is under way and no loss; every other reading beyond the bound is counted.
    sealed = 3_000 - facts["readings"] - facts["dropped"]["readings_dropped"]
    assert 0 <= sealed <= 500
    assert status.readings_dropped >= 1_500
    assert (facts["entries"], facts["dead_letters"], status.dead_letters) == (300, 100, 100)


@pytest.mark.bound("edge.device_late_s_max")
def test_an_event_older_than_events_may_be_is_placed_at_its_arrival(
    tmp_path: Path, private_broker: Brokers, agents: Agents
) -> None:
    """A counter that was subtracted the wrong way round must not move goods into the past; the flag says why."""
    local = private_broker(persistent=True)
    path = new_ledger(tmp_path / "ledger.db", "gw-1", "till-1", local_url=local.url)
    agents(path, STOCKTIDE_EDGE_DEVICE_LATE_S_MAX="60").start()
    with Scanner(local.port, "till-1") as till:
        for age_ms in (60_000, 60_001):
            event = {"id": f"e-{age_ms}", "kind": "receive", "sku": "tea", "quantity": 1, "destination": "A-01"}
            till.report(DeviceEvent.model_validate(event | {"age_ms": age_ms}))
        assert till.wait_for_receipts(2)
    with closing(database.open_reader(path)) as reader:
        assert [row.delivered() for row in queries.history(reader)] == ["time too-old", "1 min late"]

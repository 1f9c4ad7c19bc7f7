"""Replays end to end on a real Mosquitto, with an agent that loses receipts and is restarted."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable

from firmware_sim.firmware.counters import EventDigest
from firmware_sim.firmware.happening import Scan
from firmware_sim.fleet.fleet import Fleet, Report
from firmware_sim.recordings import replay
from firmware_sim.recordings.replay import HANDHELD, ReplayPlan
from testbed.services import PrivateBroker
from tests.firmware_sim.recordings import WriteRecording, busy_day
from tests.firmware_sim.small_agent import SmallAgent
from wire_protocol.address import BrokerAddress
from wire_protocol.messages import DeviceEvent

Brokers = Callable[..., PrivateBroker]


def _address(broker: PrivateBroker) -> BrokerAddress:
    return BrokerAddress("127.0.0.1", broker.port)


async def _play(plan: ReplayPlan, broker: PrivateBroker) -> tuple[Fleet, Report]:
    fleet = plan.fleet(dict.fromkeys(plan.sites, _address(broker)), speed=None, journal=True, stall_s_max=20.0)
    async with asyncio.timeout(60):
        return fleet, await fleet.run()


def _digest(events: dict[tuple[str, str], DeviceEvent]) -> str:
    digest = EventDigest()
    for (device, _), event in events.items():
        digest.add(device, Scan(**event.model_dump(exclude={"v", "id", "at_ms", "age_ms"})))
    return digest.hexdigest()


async def test_a_replay_tells_every_row_once(private_broker: Brokers, write_recording: WriteRecording) -> None:
    """Every row becomes one event with the right direction, and the fleet's books agree with the agent's."""
    broker = private_broker()
    plan = replay.plan(write_recording(*busy_day(300)), opening_stock=True)
    agent = SmallAgent(broker.port)
    async with agent.running():
        fleet, report = await _play(plan, broker)
    assert report.is_complete
    assert report.snapshot.events == plan.events == len(agent.events) == 300 + 7
    assert report.snapshot.receipts == plan.events
    assert report.snapshot.refused == 0
    assert fleet.digest() == fleet.digest("oslo") == _digest(agent.events)
    assert {(entry.device, entry.id) for entry in fleet.events("oslo")} == agent.events.keys()
    kinds = Counter(event.kind for (device, _), event in agent.events.items() if device != HANDHELD)
    assert kinds == {"pick": 270, "receive": 30}


async def test_opening_stock_comes_first_and_suffices(private_broker: Brokers, write_recording: WriteRecording) -> None:
    """No shelf goes below zero at any moment, in the order in which the agent commits."""
    broker = private_broker()
    plan = replay.plan(write_recording(*busy_day(200)), opening_stock=True)
    agent = SmallAgent(broker.port)
    async with agent.running():
        await _play(plan, broker)
    stock: Counter[str] = Counter()
    for (device, _), event in agent.events.items():
        stock[event.sku] += event.quantity if event.kind == "receive" else -event.quantity
        assert stock[event.sku] >= 0, (device, event)


async def test_receipts_that_are_lost_cost_resends_only(
    private_broker: Brokers, write_recording: WriteRecording
) -> None:
    """A device that forgets an event without a receipt, or counts it twice, breaks the whole promise."""
    broker = private_broker()
    plan = replay.plan(write_recording(*busy_day(120)))

    def loses(device: str, event_id: str, times: int) -> bool:
        return times == 1 and hashlib.sha256(f"{device}{event_id}".encode()).digest()[0] % 4 == 0

    agent = SmallAgent(broker.port, loses=loses)
    streams = plan.streams()
    for stream in streams:
        for unit in stream.units:
            unit.firmware.resend_ms = 50
    fleet = Fleet({"oslo": _address(broker)}, streams, speed=None, start_ms=plan.first_ms)
    async with agent.running(), asyncio.timeout(60):
        report = await fleet.run()
    assert report.is_complete
    assert len(agent.events) == report.snapshot.receipts == 120
    assert report.snapshot.resent >= sum(times > 1 for times in agent.times.values()) > 0
    assert fleet.digest() == _digest(agent.events)


async def test_an_agent_that_comes_late_and_is_restarted_gets_everything(
    private_broker: Brokers, write_recording: WriteRecording
) -> None:
    """Nothing may depend on the agent being there, nor on the broker remembering it."""
    broker = private_broker()
    plan = replay.plan(write_recording(*busy_day(400)))
    streams = plan.streams(memory_events_max=50)
    for stream in streams:
        for unit in stream.units:
            unit.firmware.resend_ms = 100
    fleet = Fleet({"oslo": _address(broker)}, streams, speed=None, start_ms=plan.first_ms)
    agent = SmallAgent(broker.port)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(fleet.run(), name="fleet")
        async with agent.running():
            await agent.has(lambda: len(agent.events) > 60)
        broker.restart()
        async with agent.running():
            report = await running
    assert report.is_complete
    assert len(agent.events) == 400
    assert report.snapshot.resent > 0
    assert sum(device.memory_full for device in report.snapshot.devices) > 0
    assert fleet.digest() == _digest(agent.events)


async def test_without_an_agent_the_run_ends_and_says_what_is_missing(
    private_broker: Brokers, write_recording: WriteRecording
) -> None:
    """A simulation that hangs forever, or ends as if all were well, proves nothing."""
    broker = private_broker()
    plan = replay.plan(write_recording(*busy_day(10)))
    fleet = plan.fleet({"oslo": _address(broker)}, speed=None, stall_s_max=0.3)
    async with asyncio.timeout(60):
        report = await fleet.run()
    assert not report.is_complete
    assert {(missing.device, missing.events) for missing in report.missing} == {("till-1", 5), ("till-2", 5)}
    assert report.missing[0].ids[0] == "1-1"


async def test_refused_events_are_counted_with_their_reason(
    private_broker: Brokers, write_recording: WriteRecording
) -> None:
    """A device that the gateway does not know must not resend forever, nor pass for delivered."""
    broker = private_broker()
    plan = replay.plan(write_recording(*busy_day(10)))
    agent = SmallAgent(broker.port, refuses=lambda device: "not registered" if device == "till-1" else None)
    async with agent.running():
        _, report = await _play(plan, broker)
    counts = {device.device: device for device in report.snapshot.devices}
    assert report.is_complete
    assert (counts["till-1"].refused, counts["till-1"].refusal) == (5, "not registered")
    assert counts["till-2"].receipts == 5


async def test_sites_have_their_own_brokers(private_broker: Brokers, write_recording: WriteRecording) -> None:
    """A gateway must hear its own devices and no others."""
    brokers = {"oslo": private_broker(), "bergen": private_broker()}
    plan = replay.plan(write_recording(*busy_day(100, sites=("oslo", "bergen"))))
    agents = {site: SmallAgent(broker.port) for site, broker in brokers.items()}
    fleet = plan.fleet({site: _address(broker) for site, broker in brokers.items()}, speed=None)
    async with agents["oslo"].running(), agents["bergen"].running(), asyncio.timeout(60):
        report = await fleet.run()
    assert report.is_complete
    for site, agent in agents.items():
        assert len(agent.events) == plan.sites[site].rows == 50
        assert fleet.digest(site) == _digest(agent.events)


async def test_devices_say_when_they_come_and_go(private_broker: Brokers, write_recording: WriteRecording) -> None:
    """The status topic is how a gateway knows who is there."""
    broker = private_broker()
    plan = replay.plan(write_recording(*busy_day(4, tills=1)))
    agent = SmallAgent(broker.port)
    async with agent.running():
        await _play(plan, broker)
        await agent.has(lambda: ("till-1", "offline") in agent.statuses)
    assert [state for _, state in agent.statuses] == ["online", "offline"]


def test_shared_brokers_give_devices_their_sites_name(write_recording: WriteRecording) -> None:
    """Two shops have a till-1 each; on one broker they would be the same device."""
    path = write_recording(*busy_day(20, sites=("oslo", "bergen"), tills=1))
    plan = replay.plan(path, prefixed={"oslo", "bergen"})
    assert plan.device_names == {"bergen": ["bergen.till-1"], "oslo": ["oslo.till-1"]}

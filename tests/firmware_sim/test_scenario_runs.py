"""Scenarios end to end on a real Mosquitto: whatever the faults, the agent has what happened, each once."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from firmware_sim.firmware.counters import EventDigest
from firmware_sim.firmware.happening import Scan
from firmware_sim.fleet.fleet import Fleet, Report
from firmware_sim.scenarios import builtin, scenario
from firmware_sim.scenarios.scenario import Scenario
from testbed.services import PrivateBroker
from tests.firmware_sim.small_agent import SmallAgent
from wire_protocol.address import BrokerAddress
from wire_protocol.messages import DeviceEvent

Brokers = Callable[..., PrivateBroker]


def _fleet(
    loaded: Scenario, brokers: dict[str, PrivateBroker], *, speed: float | None, seed: int | None = None
) -> Fleet:
    addresses = {gateway: BrokerAddress("127.0.0.1", broker.port) for gateway, broker in brokers.items()}
    return loaded.fleet(addresses, builtin.SCENARIOS, seed=seed, speed=speed, stall_s_max=20.0)


async def _run(fleet: Fleet, agents: Iterable[SmallAgent]) -> Report:
    async with asyncio.timeout(90), AsyncExitStack() as stack:
        for agent in agents:
            await stack.enter_async_context(agent.running())
        return await fleet.run()


def _digest(events: dict[tuple[str, str], DeviceEvent]) -> str:
    digest = EventDigest()
    for (device, _), event in events.items():
        digest.add(device, Scan(**event.model_dump(exclude={"v", "id", "at_ms", "age_ms"})))
    return digest.hexdigest()


@pytest.mark.parametrize("path", builtin.scenarios(), ids=lambda path: path.stem)
async def test_our_scenarios_arrive_whole(path: Path, private_broker: Brokers) -> None:
    """The examples must run, and faults must not change what is in the books."""
    loaded = scenario.load(path)
    brokers = {gateway: private_broker() for gateway in loaded.gateways}
    agents = {gateway: SmallAgent(broker.port) for gateway, broker in brokers.items()}
    fleet = _fleet(loaded, brokers, speed=None)
    report = await _run(fleet, agents.values())
    assert report.is_complete
    for gateway, agent in agents.items():
        assert fleet.digest(gateway) == _digest(agent.events)
    counted = sum(len(agent.events) + len(agent.readings) for agent in agents.values())
    assert counted == report.snapshot.receipts == report.snapshot.events + report.snapshot.readings


@pytest.mark.slow
async def test_bad_radio_in_scaled_time(private_broker: Brokers) -> None:
    """In scaled time, delays, silences and reboots really happen; the books still agree."""
    loaded = scenario.load(builtin.SCENARIOS / "bad-radio.yaml")
    brokers = {gateway: private_broker() for gateway in loaded.gateways}
    agents = {gateway: SmallAgent(broker.port) for gateway, broker in brokers.items()}
    fleet = _fleet(loaded, brokers, speed=1_500)
    report = await _run(fleet, agents.values())
    assert report.is_complete
    assert report.snapshot.resent > 0
    assert sum(device.reboots for device in report.snapshot.devices) == 8
    for gateway, agent in agents.items():
        assert fleet.digest(gateway) == _digest(agent.events)
    assert max(agents["north"].times.values()) > 1
    assert ("handheld-1", "offline") in agents["south"].statuses

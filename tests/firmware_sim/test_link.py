"""A device's connection on a real Mosquitto: cuts, cancellation, wrong messages, MQTT 3.1.1."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from firmware_sim.errors import BadInput, BadRecording
from firmware_sim.faults.proxy import FaultProxy
from firmware_sim.faults.radio import Delay
from firmware_sim.firmware.event_queue import Firmware
from firmware_sim.firmware.happening import Happening, Scan
from firmware_sim.fleet.device import SimulatedDevice, radio_of, rng_of
from firmware_sim.fleet.fleet import Fleet, Stream
from firmware_sim.fleet.link import LinkOptions, MqttVersion
from mqtt_client import ConnectionOptions, connect
from testbed.services import PrivateBroker
from tests.firmware_sim.small_agent import SmallAgent
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.topics import Channel

Brokers = Callable[..., PrivateBroker]
START_MS = 1_700_000_000_000


def _picks(count: int, *, every_ms: int = 1_000) -> Iterator[tuple[str, Happening]]:
    for n in range(count):
        scan = Scan(kind="pick", sku=f"sku-{n % 5}", quantity=1, source="A")
        yield "scanner-1", Happening(START_MS + n * every_ms, scan)


def _fleet(
    port: int, unit: SimulatedDevice, count: int, *, mqtt_version: MqttVersion = "5", speed: float | None = None
) -> Fleet:
    unit.firmware.resend_ms = 100
    options = LinkOptions(mqtt_version=mqtt_version, reconnect_s_max=0.2)
    stream = Stream("gw", [unit], [_picks(count)])
    broker = {"gw": BrokerAddress("127.0.0.1", port)}
    return Fleet(broker, [stream], speed=speed, start_ms=START_MS, options=options, stall_s_max=20.0)


@pytest.mark.parametrize("mqtt_version", ["5", "3.1.1"])
async def test_either_mqtt_version(mqtt_version: MqttVersion, private_broker: Brokers) -> None:
    """Gateways with an old broker have the same promise."""
    broker = private_broker()
    agent = SmallAgent(broker.port)
    async with agent.running(), asyncio.timeout(60):
        report = await _fleet(broker.port, SimulatedDevice.plain("scanner-1"), 50, mqtt_version=mqtt_version).run()
    assert report.is_complete
    assert len(agent.events) == 50


async def test_a_link_that_is_cut_loses_nothing(private_broker: Brokers) -> None:
    """What was under way when the cable was pulled has no receipt, and comes again."""
    broker = private_broker()
    agent = SmallAgent(broker.port)
    async with FaultProxy("127.0.0.1", broker.port) as proxy, agent.running(), asyncio.timeout(60):
        async with asyncio.TaskGroup() as tasks:
            fleet = _fleet(proxy.port, SimulatedDevice.plain("scanner-1", memory_events_max=20), 400)
            running = tasks.create_task(fleet.run(), name="fleet")
            for told in (50, 150, 250):
                await agent.has(lambda told=told: len(agent.events) >= told)  # type: ignore[misc]
                proxy.cut()
                proxy.heal()
            report = await running
        await agent.has(lambda: agent.statuses[-1] == ("scanner-1", "offline"))
    assert report.is_complete
    assert len(agent.events) == 400
    assert [state for _, state in agent.statuses].count("online") == 4  # the last wills of the cut ones may come late


async def test_time_goes_on_for_a_full_device_that_is_rebooting(private_broker: Brokers) -> None:
    """At `max` speed, messages in the air must not keep a device away forever."""
    broker = private_broker()
    agent = SmallAgent(broker.port)
    firmware = Firmware(
        name="scanner-1",
        rng=rng_of(1, "scanner-1", "firmware"),
        memory_events_max=5,
        reboots=[(START_MS + 3_000 * n, 60_000) for n in range(1, 20)],
    )
    unit = SimulatedDevice(firmware, radio_of(1, "scanner-1", [Delay(1.0, 100_000)]))
    async with agent.running(), asyncio.timeout(60):
        report = await _fleet(broker.port, unit, 60).run()
    assert report.is_complete
    assert len(agent.events) == 60
    assert report.snapshot.devices[0].reboots == 19


async def test_a_cancelled_fleet_stops_at_once(private_broker: Brokers) -> None:
    """Whatever it was waiting for: a task that forgets its cancellation hangs the program that started it."""
    broker = private_broker()
    for told in range(1, 120, 6):
        agent = SmallAgent(broker.port)
        async with agent.running(), asyncio.timeout(60):
            running = asyncio.create_task(
                _fleet(broker.port, SimulatedDevice.plain("scanner-1"), 100_000).run(), name="fleet"
            )
            await agent.has(lambda told=told, agent=agent: len(agent.events) >= told)  # type: ignore[misc]
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running


async def test_a_fleet_that_is_cancelled_while_its_broker_goes_stops_at_once(private_broker: Brokers) -> None:
    """Ctrl-C ends both in one moment: what breaks at the end of a connection must not hide the cancellation."""
    broker = private_broker()
    for turns in range(12):  # of the event loop, from the end of the connection to the cancellation
        agent = SmallAgent(broker.port)
        async with agent.running(), FaultProxy("127.0.0.1", broker.port) as proxy, asyncio.timeout(60):
            fleet = _fleet(proxy.port, SimulatedDevice.plain("scanner-1"), 1_000, speed=10.0)
            running = asyncio.create_task(fleet.run(), name="fleet")
            await agent.has(lambda agent=agent: len(agent.events) > 0)  # type: ignore[misc]
            proxy.cut()
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running


async def test_what_is_no_receipt_is_counted(private_broker: Brokers) -> None:
    """Firmware must survive whatever arrives on its topic."""
    broker = private_broker()
    agent = SmallAgent(broker.port, loses=lambda _device, event_id, times: event_id == "1-1" and times == 1)
    fleet = _fleet(broker.port, SimulatedDevice.plain("scanner-1"), 2)
    options = ConnectionOptions(address=BrokerAddress("127.0.0.1", broker.port), client_id="")
    async with agent.running(), connect(options) as other, asyncio.TaskGroup() as tasks:
        running = tasks.create_task(fleet.run(), name="fleet")
        await agent.has(lambda: len(agent.events) == 2)
        for payload in (b"", b"{", b"\xff\xfe", b'{"v":9}', b"[]"):
            await other.publish(topics.device("scanner-1", Channel.DEVICE_RECEIPT), payload, 0)
        report = await running
    assert report.is_complete
    assert len(agent.events) == 2


async def test_an_error_of_a_recording_ends_the_run_as_itself(private_broker: Brokers) -> None:
    """Not as a group within a group: the command line has one line for it."""

    def damaged() -> Iterator[tuple[str, Happening]]:
        yield from _picks(3)
        raise BadRecording("it broke off")

    broker = private_broker()
    stream = Stream("gw", [SimulatedDevice.plain("scanner-1")], [damaged()])
    fleet = Fleet({"gw": BrokerAddress("127.0.0.1", broker.port)}, [stream], speed=None)
    with pytest.raises(BadRecording, match="broke off"):
        await fleet.run()


def test_a_fleet_refuses_what_cannot_be() -> None:
    """A gateway without a broker, and one name for two devices."""
    streams = [
        Stream("gw", [SimulatedDevice.plain("scanner-1")], []),
        Stream("gw", [SimulatedDevice.plain("scanner-1")], []),
    ]
    with pytest.raises(BadInput, match="no broker for gateway gw"):
        Fleet({}, streams, speed=None)
    with pytest.raises(BadInput, match="twice"):
        Fleet({"gw": BrokerAddress("h", 1)}, streams, speed=None)
    with pytest.raises(BadInput, match="speed"):
        Fleet({}, [], speed=0.0)

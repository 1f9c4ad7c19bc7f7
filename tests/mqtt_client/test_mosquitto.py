"""A real broker: what Mosquitto does at a cancellation, a refusal and a take-over is what the scripted one plays.

A refused subscription is the scripted broker's alone: Mosquitto's acl_file grants every
filter.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mqtt_client import ConnectionLost, ConnectionOptions, connect
from testbed.services import PrivateBroker
from tests.mqtt_client.every_step import When, cancelled_at_each_step
from wire_protocol.address import BrokerAddress

pytestmark = pytest.mark.services
versions = pytest.mark.parametrize("mqtt_5", [True, False], ids=["5", "3.1.1"])


def config(port: int, directory: Path) -> str:
    """Anybody may connect; `open/#` is all that they may use."""
    (directory / "acl").write_text("topic readwrite open/#\n")
    return f"listener {port} 127.0.0.1\nallow_anonymous true\nacl_file {directory}/acl\n"


@pytest.fixture(scope="module")
def broker() -> Iterator[PrivateBroker]:
    """A broker that refuses some topics."""
    with PrivateBroker(config=config) as started:
        yield started


def options(broker: PrivateBroker, **chosen: object) -> ConnectionOptions:
    """How a test connects."""
    address = BrokerAddress("127.0.0.1", broker.port)
    return ConnectionOptions(address=address, **{"client_id": "test", **chosen})  # type: ignore[arg-type]


def is_closed(port: int) -> bool:
    """Whether this process has no open socket to a port."""
    opened = [each for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED]
    return port not in {each.raddr[1] for each in opened}


@versions
@pytest.mark.parametrize("when", When, ids=lambda when: when.value)
async def test_a_connection_ends_with_its_cancellation(broker: PrivateBroker, when: When, *, mqtt_5: bool) -> None:
    """At each step of a whole contact, no task and no socket is left."""

    async def everything() -> None:
        async with connect(options(broker, mqtt_5=mqtt_5)) as connection:
            await connection.subscribe([("open/a", 1), ("open/b", 0)])
            await connection.publish("open/a", b"payload")
            async for _ in connection.messages():
                break
            await connection.unsubscribe(["open/a"])

    reached = await cancelled_at_each_step(everything, when, is_clean=lambda: is_closed(broker.port))
    assert reached >= 6  # connect, subscribe, publish, a message, unsubscribe, disconnect


async def test_a_refused_publish_is_reported(broker: PrivateBroker) -> None:
    """By MQTT 5 alone: MQTT 3.1.1 has no way to say it."""
    refused = list[str]()
    async with connect(options(broker, publish_refused=refused.append)) as connection:
        await connection.publish("open/a", b"payload")
        await connection.publish("closed/a", b"payload")
    assert len(refused) == 1
    assert "authorized" in refused[0]


@versions
async def test_a_session_that_is_taken_over_ends(broker: PrivateBroker, *, mqtt_5: bool) -> None:
    """The reason is there by MQTT 5 alone."""
    async with connect(options(broker, mqtt_5=mqtt_5)) as first:
        async with connect(options(broker, mqtt_5=mqtt_5)) as second:
            with pytest.raises(ConnectionLost):
                await anext(first.messages())
            await second.publish("open/a", b"payload")
        assert first.was_taken_over is mqtt_5
        assert not second.was_taken_over

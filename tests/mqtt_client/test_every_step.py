"""Every await of the package under a cancellation: just there, together with its answer, and right after it."""

import asyncio
import random

import pytest

from mqtt_client import Backoff, ConnectionOptions, connect, stay_connected
from tests.mqtt_client.every_step import When, cancelled_at_each_step
from tests.mqtt_client.scripted_broker import ScriptedBroker
from wire_protocol.address import BrokerAddress

moments = pytest.mark.parametrize("when", When, ids=lambda when: when.value)


def options(port: int, *, mqtt_5: bool = True) -> ConnectionOptions:
    """How a test connects."""
    return ConnectionOptions(address=BrokerAddress("127.0.0.1", port), client_id="test", mqtt_5=mqtt_5, timeout_s=30.0)


@pytest.mark.parametrize("mqtt_5", [True, False], ids=["5", "3.1.1"])
@moments
async def test_a_connection_ends_with_its_cancellation(when: When, *, mqtt_5: bool) -> None:
    """A process that is asked to stop would wait for itself, or leave a socket that the broker takes for a client."""
    async with ScriptedBroker(mqtt_5=mqtt_5) as broker:

        async def everything() -> None:
            async with connect(options(broker.port, mqtt_5=mqtt_5)) as connection:
                await connection.subscribe([("a", 1), ("b", 0)])
                await connection.publish("topic", b"payload")
                await connection.unsubscribe(["a"])
                broker.send(b"b", b"news")
                async for _ in connection.messages():
                    break

        reached = await cancelled_at_each_step(everything, when, is_clean=lambda: broker.open == 0)
        assert reached >= 6  # connect, subscribe, publish, unsubscribe, a message, disconnect


@moments
async def test_contacts_end_with_their_cancellation(when: When) -> None:
    """While it connects, while a task group ends over a broker's error, and in the pause between two contacts."""
    async with ScriptedBroker() as broker:

        async def contact() -> None:
            async with connect(options(broker.port)) as connection, asyncio.TaskGroup() as tasks:
                broker.hang_up()
                tasks.create_task(connection.publish("topic", b"payload"))
                async for _ in connection.messages():
                    pass

        async def contacts() -> None:
            backoff = Backoff(0.001, 0.001, random.Random(1).uniform)
            await stay_connected(contact, lambda _: None, backoff, "contact")

        reached = await cancelled_at_each_step(contacts, when, is_clean=lambda: broker.open == 0, steps_max=40)
        assert reached == 40

"""The embedded broker: the same policy as Mosquitto, and what a fleet that reconnects needs of it."""

import asyncio
from typing import Any

import aiomqtt
import pytest
from paho.mqtt.reasoncodes import ReasonCode

from broker_config import passwords
from broker_config.embedded import listeners
from broker_config.embedded.broker import EmbeddedBroker
from broker_config.embedded.listeners import Caller
from broker_config.errors import BrokerStartFailed
from broker_config.policy import SERVICE_USER, Side
from tests.broker_config.clients import HOST, all_topics, expected, try_everything, users

SECRET = "correct-horse-battery"


def _users(side: Side) -> dict[str, str]:
    return {user: passwords.hashed(SECRET) for user in users(side)}


def _client(broker: EmbeddedBroker, user: str, **options: Any) -> aiomqtt.Client:
    return aiomqtt.Client(HOST, broker.port, username=user, password=SECRET, **{"identifier": f"c-{user}", **options})


async def _next(client: aiomqtt.Client) -> bytes:
    async with asyncio.timeout(60):
        payload = (await anext(client.messages)).payload
    assert isinstance(payload, bytes)
    return payload


@pytest.mark.parametrize("side", Side)
async def test_each_role_is_confined(side: Side) -> None:
    """The demo must not work by doing what a real broker would forbid."""
    async with EmbeddedBroker(side=side, users=_users(side)) as broker:
        assert await try_everything(side, lambda user: _client(broker, user)) == expected(side)


@pytest.mark.parametrize(("user", "password"), [("gw-a", "wrong"), ("gw-c", SECRET), ("gw-a", ""), (None, None)])
async def test_a_wrong_password_is_refused(user: str | None, password: str | None) -> None:
    """Nobody gets in without the password of a user that exists; the next one in is not disturbed."""
    async with EmbeddedBroker(users=_users(Side.CLOUD)) as broker:
        with pytest.raises(aiomqtt.MqttError, match=r"[Nn]ot authori[sz]ed"):
            async with aiomqtt.Client(HOST, broker.port, username=user, password=password, identifier="c-gw-a"):
                pass
        async with _client(broker, "gw-a"):
            pass


async def test_a_subscription_to_another_gateway_is_refused() -> None:
    """A mistake in a topic shows when it is made."""
    async with EmbeddedBroker(users=_users(Side.CLOUD)) as broker, _client(broker, "gw-a") as client:
        other = next(topic.name for topic in all_topics(Side.CLOUD) if topic.subscriber == "gw-b")
        (reason,) = await client.subscribe(other, qos=1)
        assert isinstance(reason, ReasonCode)
        assert reason.is_failure


async def test_a_last_will_on_another_s_topic_is_refused() -> None:
    """A will is published by the broker, so it must not get around the policy."""
    mine, other = (
        next(topic.name for topic in all_topics(Side.CLOUD) if topic.publisher == gateway)
        for gateway in ("gw-a", "gw-b")
    )
    async with EmbeddedBroker(users=_users(Side.CLOUD)) as broker:
        async with _client(broker, "gw-a", will=aiomqtt.Will(mine, b"gone", qos=1)):
            pass
        with pytest.raises(aiomqtt.MqttError):
            async with _client(broker, "gw-a", will=aiomqtt.Will(other, b"gone", qos=1)):
                pass


@pytest.mark.parametrize("with_users", [True, False])
async def test_a_persistent_session_queues_for_a_client_that_is_away(*, with_users: bool) -> None:
    """The agent restarts; scans go on meanwhile."""
    users_or_none = _users(Side.GATEWAY) if with_users else None
    topic = next(topic.name for topic in all_topics(Side.GATEWAY) if topic.publisher == "scale_b")
    async with EmbeddedBroker(side=Side.GATEWAY, users=users_or_none) as broker:
        async with _client(broker, "agent", clean_session=False) as agent:
            await agent.subscribe(topic, qos=1)
        async with _client(broker, "scale_b") as device:
            for number in range(20):
                await device.publish(topic, str(number), qos=1)
        async with _client(broker, "agent", clean_session=False) as agent:
            assert [int(await _next(agent)) for _ in range(20)] == list(range(20))


async def test_a_client_that_comes_back_before_it_was_missed_is_served() -> None:
    """After a half-open link the broker still thinks the old connection lives."""
    topic = next(topic.name for topic in all_topics(Side.GATEWAY) if topic.publisher == "scale_b")
    async with (
        EmbeddedBroker(side=Side.GATEWAY, users=_users(Side.GATEWAY)) as broker,
        _client(broker, "scale_b") as device,
    ):
        for number in range(3):
            # A plain socket, so that this connection stays open and silent like a dead one.
            dead = await _raw_session(broker, "agent", topic)
            async with _client(broker, "agent", clean_session=False) as agent:
                await device.publish(topic, str(number), qos=1)
                assert await _next(agent) == str(number).encode()
            dead.transport.abort()


async def test_retained_messages_reach_those_who_may_have_them_and_only_those() -> None:
    """Without our change, amqtt offers the retained messages of anybody's subscription to everybody who connects."""
    down_a, down_b = (
        next(t.name for t in all_topics(Side.CLOUD) if t.subscriber == gateway and t.rule.retain)
        for gateway in ("gw-a", "gw-b")
    )
    async with EmbeddedBroker(users=_users(Side.CLOUD)) as broker, _client(broker, "ingest") as ingest:
        for topic, text in ((down_b, "for b"), (down_a, "for a")):
            await ingest.publish(topic, text, qos=1, retain=True)
        async with _client(broker, "gw-b", clean_session=False) as client:
            await client.subscribe("stocktide/v1/#", qos=1)
            assert await _next(client) == b"for b"
        async with _client(broker, "gw-a") as client:
            await client.subscribe("stocktide/v1/#", qos=1)
            assert await _next(client) == b"for a"


async def test_nothing_vanishes_while_others_subscribe() -> None:
    """Without our change, amqtt loses the message that it is distributing when a new filter comes in."""
    topic = next(topic.name for topic in all_topics(Side.CLOUD) if topic.publisher == "gw-a")
    async with EmbeddedBroker() as broker, _client(broker, "ingest") as reader, _client(broker, "gw-a") as sender:
        async with _client(broker, "gw-b") as other:
            await other.subscribe("#", qos=0)  # before the reader's, so that amqtt pauses in front of the reader's
            await reader.subscribe(topic, qos=1)
            async with asyncio.TaskGroup() as both:
                both.create_task(_subscribe_to_many(other), name="test.subscribe")
                both.create_task(_publish_many(sender, topic), name="test.publish")
        assert [int(await _next(reader)) for _ in range(200)] == list(range(200))


async def test_a_stopped_broker_leaves_no_connection_open() -> None:
    """A client that was not told would wait for a broker that is gone; and stopping must not wait for the client."""
    async with EmbeddedBroker(users=_users(Side.CLOUD)) as broker:
        silent, writer = await asyncio.open_connection(HOST, broker.port)
        leaving = await _raw_session(broker, "gw-a", "any/topic")
        leaving.transport.abort()
    async with asyncio.timeout(60):
        assert await silent.read() == b""
    writer.transport.abort()


async def test_mqtt_5_is_refused_and_a_stopped_broker_remembers_nothing() -> None:
    """What the module says it cannot do: clients have to be told, not left to hang."""
    async with EmbeddedBroker() as broker:
        port = broker.port
        answer = await _connect_packet(port, b"\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01c")
        assert answer == b"\x20\x02\x00\x01"  # unacceptable protocol version
        async with _client(broker, "gw-a") as client:
            await client.publish("topic", b"old", qos=1, retain=True)
    async with EmbeddedBroker(port=port) as broker, _client(broker, "gw-a") as client:
        await client.subscribe("topic", qos=1)
        await client.publish("topic", b"new", qos=1)
        assert await _next(client) == b"new"


async def test_a_taken_port_is_reported() -> None:
    """The demo says what is wrong rather than showing a traceback of amqtt."""
    async with EmbeddedBroker() as broker:
        with pytest.raises(BrokerStartFailed, match=str(broker.port)):
            async with EmbeddedBroker(port=broker.port):
                pass


async def _subscribe_to_many(client: aiomqtt.Client) -> None:
    for number in range(100):
        await client.subscribe([(f"other/{number}/{part}", 1) for part in range(10)])


async def _publish_many(client: aiomqtt.Client, topic: str) -> None:
    for number in range(200):
        await client.publish(topic, str(number), qos=1)


async def _connect_packet(port: int, body: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"\x10" + bytes([len(body)]) + body)
    try:
        return await reader.read()
    finally:
        writer.transport.abort()


async def _raw_session(broker: EmbeddedBroker, user: str, topic: str) -> asyncio.StreamWriter:
    """Connect with a persistent session as a client that will then say nothing, and subscribe."""

    def text(value: str) -> bytes:
        return len(value).to_bytes(2) + value.encode()

    reader, writer = await asyncio.open_connection(HOST, broker.port)
    body = text("MQTT") + b"\x04\xc0\x00\x00" + text(f"c-{user}") + text(user) + text(SECRET)
    writer.write(b"\x10" + bytes([len(body)]) + body)
    assert (await reader.readexactly(4))[3] == 0
    subscribe = b"\x00\x01" + text(topic) + b"\x01"
    writer.write(b"\x82" + bytes([len(subscribe)]) + subscribe)
    assert (await reader.readexactly(5))[0] == 0x90  # SUBACK, whatever it says
    return writer


def test_nobody_takes_up_another_users_session_by_its_client_id() -> None:
    """What waits for one device would be handed to another; only the agent, of which there is one, chooses freely."""
    admit = listeners.by_password(_users(Side.GATEWAY), Side.GATEWAY)

    def admitted(user: str) -> str:
        found = admit(Caller(user=user, password=SECRET, client_id="stocktide-agent", common_name=None))
        assert found is not None
        return found.client_id

    devices = [user for user in users(Side.GATEWAY) if user != SERVICE_USER[Side.GATEWAY]]
    assert len({admitted(user) for user in users(Side.GATEWAY)}) == len(users(Side.GATEWAY))
    assert admitted(SERVICE_USER[Side.GATEWAY]) == "stocktide-agent"
    assert all(admitted(user) == f"{user}/stocktide-agent" for user in devices)

"""The bounds of a broker, each reached on a real Mosquitto with the configuration that we render."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from broker_config.limits import BrokerLimits
from broker_config.mosquitto import CONFIG_FILE, Auth, MosquittoConfig, render
from broker_config.policy import Side
from testbed.services import PrivateBroker

TOPIC = "stocktide/v1/dev/till-1/event"
WAIT_S = 60
Brokers = Callable[..., PrivateBroker]


def limited(**limits: int) -> Callable[[int, Path], str]:
    """What PrivateBroker asks for: the text of a gateway's mosquitto.conf."""

    def config(port: int, directory: Path) -> str:
        settings = MosquittoConfig(
            side=Side.GATEWAY,
            auth=Auth.ANONYMOUS,
            directory=directory,
            port=port,
            limits=BrokerLimits.for_side(Side.GATEWAY, **limits),
        )
        files = render(settings)
        for name, text in files.items():
            (directory / name).write_text(text)
        return files[CONFIG_FILE]

    return config


@dataclass
class Subscriber:
    """A client that keeps what it is given, and acknowledges it only when told to."""

    client: Client
    given: list[MQTTMessage] = field(default_factory=list)
    connack: Properties | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)
    ready: threading.Event = field(default_factory=threading.Event)
    refused: threading.Event = field(default_factory=threading.Event)

    def wait_for(self, number: int) -> None:
        """Wait until so many messages are here."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.given) >= number, WAIT_S)

    def note(self, message: MQTTMessage) -> None:
        """A message has come."""
        with self.changed:
            self.given.append(message)
            self.changed.notify_all()


@contextmanager
def subscriber(
    broker: PrivateBroker, name: str, *, acknowledges: bool = True, keepalive_s: int = 60
) -> Iterator[Subscriber]:
    """A client with a session that outlives it, subscribed to the events of a device."""
    client = Client(
        CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=not acknowledges
    )
    made = Subscriber(client)

    def on_connect(_client: Client, _userdata: Any, _flags: Any, reason: Any, properties: Properties | None) -> None:
        made.connack = properties
        if reason.is_failure:
            made.refused.set()
        else:
            client.subscribe(TOPIC, qos=1)

    client.on_connect = on_connect
    client.on_connect_fail = lambda *_: made.refused.set()
    client.on_disconnect = lambda *_: made.refused.set()
    client.on_subscribe = lambda *_: made.ready.set()
    client.on_message = lambda _client, _userdata, message: made.note(message)
    session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    session.SessionExpiryInterval = 3600
    client.connect("127.0.0.1", broker.port, keepalive_s, clean_start=False, properties=session)
    client.loop_start()
    try:
        yield made
    finally:
        client.disconnect()
        client.loop_stop()


def publish(broker: PrivateBroker, count: int, payload: bytes = b"x") -> None:
    """Publish, and wait until the broker has everything."""
    client = Client(CallbackAPIVersion.VERSION2, client_id="till-1", protocol=MQTTProtocolVersion.MQTTv5)
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    assert connected.wait(WAIT_S)
    for _ in range(count):
        client.publish(TOPIC, payload, qos=1).wait_for_publish(WAIT_S)
    client.disconnect()
    client.loop_stop()


@pytest.mark.bound("broker.connections_max")
def test_a_client_beyond_the_connections_is_refused(private_broker: Brokers) -> None:
    """A device gone mad that connects again and again must not take the file descriptors of the gateway."""
    broker = private_broker(limited(connections_max=3))
    with ExitStack() as stack:
        inside = []
        for number in range(3):
            inside.append(stack.enter_context(subscriber(broker, f"c-{number}")))
            # One after the other: the probe that found the broker ready may still count as a connection.
            assert inside[-1].ready.wait(WAIT_S)
        outside = stack.enter_context(subscriber(broker, "c-3"))
        assert outside.refused.wait(WAIT_S)
        assert not outside.ready.is_set()
        assert not any(client.refused.is_set() for client in inside)


@pytest.mark.bound("broker.inflight_messages_max")
def test_no_more_is_in_flight_than_may_be(private_broker: Brokers) -> None:
    """A client that is slow to acknowledge gets no more until it does."""
    broker = private_broker(limited(inflight_messages_max=4))
    with subscriber(broker, "slow", acknowledges=False) as slow, subscriber(broker, "witness") as witness:
        assert slow.ready.wait(WAIT_S)
        assert witness.ready.wait(WAIT_S)
        publish(broker, 10)
        witness.wait_for(10)
        slow.wait_for(4)
        assert len(slow.given) == 4
        for message in slow.given[:2]:
            slow.client.ack(message.mid, message.qos)
        slow.wait_for(6)
        assert len(slow.given) == 6


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        pytest.param({"queued_messages_max": 5}, 5, marks=pytest.mark.bound("broker.queued_messages_max")),
        pytest.param({"queued_bytes_max": 4_096}, 5, marks=pytest.mark.bound("broker.queued_bytes_max")),
    ],
    ids=["messages", "bytes"],
)
def test_what_is_kept_for_a_client_that_is_away_is_bounded(
    private_broker: Brokers, limits: dict[str, int], kept: int
) -> None:
    """An agent that is away for a month must not cost the gateway its memory; devices have what is dropped."""
    broker = private_broker(limited(**limits))
    with subscriber(broker, "agent") as agent:
        assert agent.ready.wait(WAIT_S)
    publish(broker, 20, bytes(1_000))
    with subscriber(broker, "agent") as agent:
        assert agent.ready.wait(WAIT_S)
        publish(broker, 1, b"end")
        agent.wait_for(1)
        with agent.changed:
            assert agent.changed.wait_for(lambda: bytes(agent.given[-1].payload) == b"end", WAIT_S)
        assert 1 <= len(agent.given) - 1 <= kept


@pytest.mark.bound("broker.keepalive_s_max")
def test_a_long_keepalive_is_shortened(private_broker: Brokers) -> None:
    """A client that is gone would be believed to be there for as long as it had asked for."""
    broker = private_broker(limited(keepalive_s_max=20))
    with subscriber(broker, "sleepy", keepalive_s=3_000) as sleepy:
        assert sleepy.ready.wait(WAIT_S)
        assert getattr(sleepy.connack, "ServerKeepAlive", None) == 20

"""What a connection is opened with."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass

from wire_protocol.address import BrokerAddress


@dataclass(frozen=True, slots=True)
class LastWill:
    """What the broker publishes when the connection ends without a word."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


def _nobody(_reason: str) -> None:
    """Ignore it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """How to connect. The session is always clean: nothing in Stocktide depends on broker sessions.

    Attributes:
        address: the broker, with user and password if there are any.
        client_id: the name of the session.
        mqtt_5: speak MQTT 5; otherwise 3.1.1.
        keepalive_s: seconds of silence before the connection is probed.
        timeout_s: seconds for connecting and for each answer of the broker.
        tls: what to prove ourselves with; None for a plain connection.
        will: what the broker publishes when the connection ends without a word.
        incoming_max: messages that wait to be read; beyond that they are dropped, and their senders send them again.
        inflight_max: messages with QoS 1 on their way at a time; None for the library's default.
        calls_max: calls on their way at which the library begins to warn.
        publish_refused: called with the reason why the broker has refused a message (a PUBACK with a reason code of
            0x80 or above). A callback and no error of `publish`: what is refused is sent again end to end, and one
            refused message must not end the contact of all the others.
    """

    address: BrokerAddress
    client_id: str
    mqtt_5: bool = True
    keepalive_s: int = 30
    timeout_s: float = 10.0
    tls: ssl.SSLContext | None = None
    will: LastWill | None = None
    incoming_max: int = 1_000
    inflight_max: int | None = None
    calls_max: int = 16
    publish_refused: Callable[[str], None] = _nobody

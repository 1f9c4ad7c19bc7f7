"""MQTT connections as every part of Stocktide opens them: the one wrapper of aiomqtt.

aiomqtt passes over a few things that a process which runs for months cannot: a refused publish, a connection that is
closed before it was answered, a socket that a cancelled connect leaves open, and a cancellation that arrives together
with an answer.

Invariant: this package knows no topic; what is published, and what a lost connection means, is its callers' to say.
"""

from mqtt_client.connection import Connection, Incoming, connect
from mqtt_client.errors import ConnectionLost, MessageTooLarge, MqttClientError, TlsUnusable
from mqtt_client.options import ConnectionOptions, LastWill
from mqtt_client.problems import ANSWERED_NOTHING, Problem, Stage, explain
from mqtt_client.reconnect import Backoff, in_a_task, stay_connected
from mqtt_client.tls import client_context

__all__ = [
    "ANSWERED_NOTHING",
    "Backoff",
    "Connection",
    "ConnectionLost",
    "ConnectionOptions",
    "Incoming",
    "LastWill",
    "MessageTooLarge",
    "MqttClientError",
    "Problem",
    "Stage",
    "TlsUnusable",
    "client_context",
    "connect",
    "explain",
    "in_a_task",
    "stay_connected",
]

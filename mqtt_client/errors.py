"""Errors of MQTT connections. The docstring of a class is its default message; `hint` says what to do next."""

from command_line.errors import StocktideError


class MqttClientError(StocktideError):
    """An MQTT connection failed."""


class ConnectionLost(MqttClientError):
    """The broker could not be reached, refused the connection, or has ended it."""


class MessageTooLarge(MqttClientError):
    """A message is larger than the broker takes; it would have ended the connection.

    Attributes:
        bytes_max: of a payload on this topic.
    """

    def __init__(self, topic: str, size_bytes: int, bytes_max: int) -> None:
        super().__init__(
            f"A message of {size_bytes} bytes on {topic}; the broker takes at most {bytes_max} there.",
            hint="Raise the broker's largest packet: stocktide broker limits, packet_bytes_max.",
        )
        self.bytes_max = bytes_max


class TlsUnusable(MqttClientError):
    """The files for TLS cannot be used."""

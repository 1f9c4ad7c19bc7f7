"""Errors of MQTT connections. The docstring of a class is its default message; `hint` says what to do next."""

from command_line.errors import StocktideError


class MqttClientError(StocktideError):
    """An MQTT connection failed."""


class ConnectionLost(MqttClientError):
    """The broker could not be reached, refused the connection, or has ended it."""


class TlsUnusable(MqttClientError):
    """The files for TLS cannot be used."""

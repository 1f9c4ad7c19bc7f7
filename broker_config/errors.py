"""Errors of the broker configuration. The docstring of a class is its default message; `hint` says what to do next."""

from command_line.errors import StocktideError


class BrokerError(StocktideError):
    """The broker cannot be configured or started."""


class UnsafeConfig(BrokerError):
    """This configuration would let unauthenticated clients in."""

    usage = True


class InvalidConfig(BrokerError):
    """Settings are missing, or contradict each other."""

    usage = True


class InvalidPasswords(BrokerError):
    """A password file cannot be read, or a user name cannot be stored in one."""

    usage = True


class SimExtraMissing(BrokerError):
    """The embedded broker needs amqtt, which is not installed."""

    hint = "pip install 'stocktide[sim]'"


class BrokerStartFailed(BrokerError):
    """The embedded broker could not listen."""

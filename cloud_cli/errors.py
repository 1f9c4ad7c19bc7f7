"""Errors of the operators' commands. The docstring of a class is its default message."""

from command_line.errors import StocktideError


class BadInput(StocktideError, ValueError):
    """The command cannot be carried out as given."""

    usage = True


class InvalidCatalog(BadInput):
    """A file of items cannot be imported."""


class BrokerNotReloaded(StocktideError):
    """The command that makes the broker read its files again failed."""

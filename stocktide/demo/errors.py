"""Errors of the demo."""

from command_line.errors import StocktideError


class DemoError(StocktideError):
    """The demo cannot go on."""


class ProcessFailed(DemoError):
    """A process of the demo ended or did not get ready."""

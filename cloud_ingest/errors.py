"""Errors of the ingest worker. The docstring of a class is its default message; `hint` says what to do next."""

from command_line.errors import StocktideError


class IngestError(StocktideError):
    """The ingest worker failed."""


class EvictionFailed(IngestError):
    """The gateway's live connection could not be ended."""

"""Errors of the simulator. The docstring of a class is its default message; `hint` says what to do next."""

from command_line.errors import StocktideError


class SimError(StocktideError):
    """The simulation cannot go on."""


class BadInput(SimError):
    """The command cannot be carried out as given."""

    usage = True


class BadScenario(BadInput):
    """The scenario is not well formed."""

    hint = "See the scenarios that come with Stocktide: stocktide sim list"


class BadRecording(SimError):
    """The recording cannot be read."""

    hint = "A recording is CSV, plain or gzip, in UTF-8, with the header: time,site,device,sku,quantity"


class MemoryFull(SimError):
    """The device's memory is full; it scans nothing until a receipt makes room."""


class JournalFull(SimError):
    """More events were sent than the journal may keep."""

    hint = "Play less of it, or run without a journal."


def first_of(errors: BaseExceptionGroup[SimError]) -> SimError:
    """The first error of a group that holds nothing else: one task's failure is reported as itself."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, SimError):
        raise TypeError(f"{type(error).__name__} is not an error of the simulator") from error
    return error

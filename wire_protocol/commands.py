"""The commands that the cloud may give a gateway: their names, their arguments, checked alike at both ends.

Invariant: an argument that is not here is refused, in the cloud before it is sent and at the gateway before it is
carried out.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wire_protocol import names
from wire_protocol.errors import WireError
from wire_protocol.problems import first_problem
from wire_protocol.proof import PREFIXES_MAX, DigestQuestion

Arguments: TypeAlias = Mapping[str, str | int | bool]
Sentence = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class InvalidCommand(WireError, ValueError):
    """There is no such command, or its arguments are not what they should be."""


class Request(BaseModel):
    """Base of all commands; what operators ask for has a `summary`."""

    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")
    summary: ClassVar[str | None] = None


class SyncNow(Request):
    """Report everything, and ask for what the site's other gateways have."""

    summary = "report and fetch everything now"


class Recount(Request):
    """Ask the technicians to count what lies at a location; `sku` narrows it to one item."""

    summary = "ask for a count of a location"

    location: names.LocationName
    sku: names.Sku | None = None
    note: Sentence | None = None


class Locate(Request):
    """Let a device blink and beep for some seconds, so that a technician finds it."""

    summary = "let a device blink and beep"

    device: names.DeviceName
    seconds: Annotated[int, Field(ge=1, le=3600)] = 30


class CollectDiagnostics(Request):
    """Send what remote support needs: versions, settings, disk, queue, the last dead letters; no secrets."""

    summary = "send versions, settings, disk and the last dead letters"


class SetLogLevel(Request):
    """Log more or less for some minutes; then as before."""

    summary = "log more or less for a while"

    level: Literal["debug", "info", "warning", "error"]
    minutes: Annotated[int, Field(ge=1, le=24 * 60)] = 60


class OpenEpoch(Request):
    """Go on in a new epoch, after fetching what the cloud has; what only the gateway has is carried over."""

    summary = "go on in a new epoch of the ledger"

    reason: Sentence


class ProveStock(Request):
    """What do you hold of the cells in these buckets (`wire_protocol.proof`)? Asked by the stock proof itself."""

    prefixes: Annotated[str, StringConstraints(max_length=17 * PREFIXES_MAX)]

    def question(self) -> DigestQuestion:
        """The question."""
        return DigestQuestion(prefixes=tuple(self.prefixes.split(",")))


REQUESTS: Final[Mapping[str, type[Request]]] = {
    "sync-now": SyncNow,
    "recount": Recount,
    "locate": Locate,
    "collect-diagnostics": CollectDiagnostics,
    "set-log-level": SetLogLevel,
    "open-epoch": OpenEpoch,
    "prove-stock": ProveStock,
}


def parse(name: str, arguments: Arguments | Mapping[str, Any]) -> Request:
    """A command by its name and arguments.

    Raises:
        InvalidCommand: unknown, or an argument is missing, wrong or not known.
    """
    if name not in REQUESTS:
        raise InvalidCommand(f"There is no command {name}.")
    try:
        return REQUESTS[name].model_validate(dict(arguments))
    except ValidationError as error:
        raise InvalidCommand(f"{name}: {first_problem(error)}") from None

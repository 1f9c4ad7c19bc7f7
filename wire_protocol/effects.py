"""What a sender of frames asks its surroundings to do, or lets them know (`wire_protocol.replication`)."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Seal:
    """Seal up to `entries_max` of the waiting entries into the next frame, then call `sealed`."""

    entries_max: int


@dataclass(frozen=True, slots=True)
class Send:
    """Publish a sealed frame, byte for byte."""

    frame: int


@dataclass(frozen=True, slots=True)
class Acked:
    """Frames up to this one are durable in the cloud."""

    frame: int


@dataclass(frozen=True, slots=True)
class SteppedBack:
    """The cloud fell back to an older cursor (a stale replica took over): frames after `frame` are sent again."""

    frame: int


@dataclass(frozen=True, slots=True)
class Forked:
    """The cloud has another history than this ledger. Sending has stopped."""

    reason: str


Effect: TypeAlias = Seal | Send | Acked | SteppedBack | Forked

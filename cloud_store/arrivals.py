"""What a worker hands to the merge, and what the merge answers: plain values, no database."""

from dataclasses import dataclass, field
from typing import NamedTuple

from wire_protocol.frames import Frame
from wire_protocol.messages import Rejected
from wire_protocol.replication import Receiver
from wire_protocol.topics import Stream


@dataclass(frozen=True, slots=True)
class ArrivedFrame:
    """A frame as it came in. `payload` is what was on the wire; it is kept when the frame has to be quarantined."""

    gateway: str
    stream: Stream
    topic: str
    payload: bytes
    frame: Frame
    received_ms: int


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway as the registry has it; the only source of its tenant and site."""

    gateway_id: int
    name: str
    tenant_id: int
    site_id: int
    active: bool


class StreamKey(NamedTuple):
    """One stream of one gateway."""

    gateway: str
    stream: Stream


@dataclass(slots=True)
class StreamOutcome:
    """Where a stream stands after a merge; `receiver` makes the acknowledgement."""

    receiver: Receiver
    rejected: list[Rejected] = field(default_factory=list)


@dataclass(slots=True)
class MergeReport:
    """What one merge did. `streams` has every stream that must be answered; `refused` the gateways that must not."""

    streams: dict[StreamKey, StreamOutcome] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    frames: int = 0
    movements: int = 0
    counts: int = 0
    readings: int = 0
    rejected: int = 0
    duplicates: int = 0
    ahead: int = 0
    forks: int = 0
    retries: int = 0

    @property
    def entries(self) -> int:
        """Ledger entries and readings that are in the database now and were not before."""
        return self.movements + self.counts + self.readings

    def add(self, other: "MergeReport") -> None:
        """Add what a later merge did. Its receivers know best where streams stand; what was rejected stays rejected."""
        for key, later in other.streams.items():
            if (earlier := self.streams.get(key)) is not None:
                later.rejected[:0] = earlier.rejected
                later.receiver.fork = later.receiver.fork or earlier.receiver.fork
            self.streams[key] = later
        self.refused |= other.refused
        for name in (
            "frames",
            "movements",
            "counts",
            "readings",
            "rejected",
            "duplicates",
            "ahead",
            "forks",
            "retries",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))

"""What a worker hands to the merge, and what the merge answers: plain values, no database."""

from dataclasses import dataclass, field
from typing import NamedTuple, Self

from cloud_store.merge import frame_entries
from cloud_store.merge.frame_entries import FrameEntries, Unusual, Validated
from wire_protocol import entries, frames, topics
from wire_protocol.frames import Frame
from wire_protocol.messages import ClampedTime, Rejected
from wire_protocol.replication import Receiver
from wire_protocol.topics import Stream


@dataclass(slots=True)
class ArrivedFrame:
    """A frame as it came in; `payload` is what was on the wire: sites are passed it, and quarantine keeps it."""

    gateway: str
    stream: Stream
    topic: str
    payload: bytes
    frame: Frame
    received_ms: int
    _entries: FrameEntries | None = None
    _validated: Validated | None = None

    @classmethod
    def read(cls, gateway: str, stream: Stream, payload: bytes, received_ms: int, *, topic: str = "") -> Self:
        """Decode a payload.

        Raises:
            InvalidFrame: it is no frame.
        """
        return cls(gateway, stream, topic or topics.up(gateway, stream), payload, frames.decode(payload), received_ms)

    def entries(self) -> FrameEntries:
        """What is in the frame.

        Worked out when first asked for: a frame that was merged before is sent again oftener than one would think.
        """
        if self._entries is None:
            try:
                self._entries = frame_entries.by_columns(self.frame)
            except Unusual:
                self._entries = frame_entries.one_by_one(self.frame, self.validated())
        return self._entries

    def validated(self) -> Validated:
        """The entries of the frame's rows one by one, None where a row is unusable, and (index, reason) of these."""
        if self._validated is None:
            self._validated = entries.validate(self.frame.rows)
        return self._validated

    @property
    def log(self) -> "LogKey":
        """The log it belongs to."""
        return LogKey(self.gateway, self.stream, self.frame.header.epoch)


@dataclass(frozen=True, slots=True)
class MergedFrame:
    """A ledger frame that is in the database now, and the entries of it that do not count."""

    arrived: ArrivedFrame
    site_id: int
    rejected: tuple[int, ...]


class LogKey(NamedTuple):
    """One log: one stream of one gateway in one epoch."""

    gateway: str
    stream: Stream
    epoch: str


@dataclass(slots=True)
class StreamOutcome:
    """Where a log stands after a merge; `receiver` makes the acknowledgement."""

    receiver: Receiver
    rejected: list[Rejected] = field(default_factory=list)
    bounded: list[ClampedTime] = field(default_factory=list)


@dataclass(slots=True)
class MergeReport:
    """What one merge did. `streams` has every log that must be answered; `refused` the gateways that must not.

    `merged` are the ledger frames that the other gateways of their sites want. `tenants` says whose each
    gateway is, `taken` how many frames and entries of it were merged, `forked` how many of its frames were another
    history, and `late_counts` how many of its counts had to look back over what is later in their cells. `surcharge`
    is what tenants' frames cost beyond their entries, in entries: bytes and new names.
    """

    streams: dict[LogKey, StreamOutcome] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    merged: list[MergedFrame] = field(default_factory=list)
    tenants: dict[str, int] = field(default_factory=dict)
    taken: dict[str, tuple[int, int]] = field(default_factory=dict)
    forked: dict[str, int] = field(default_factory=dict)
    late_counts: dict[str, int] = field(default_factory=dict)
    surcharge: dict[int, int] = field(default_factory=dict)
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

    def take(self, gateway: str, frame_count: int, entry_count: int) -> None:
        """Note that so much of a gateway was merged."""
        before = self.taken.get(gateway, (0, 0))
        self.taken[gateway] = (before[0] + frame_count, before[1] + entry_count)

    def charge(self, tenant: int, entries: int) -> None:
        """Note what a tenant's frames cost beyond their entries."""
        self.surcharge[tenant] = self.surcharge.get(tenant, 0) + entries

    def add(self, other: "MergeReport") -> None:
        """Add what a later merge did. Its receivers know best where streams stand; what was rejected stays rejected."""
        for key, later in other.streams.items():
            if (earlier := self.streams.get(key)) is not None:
                later.rejected[:0] = earlier.rejected
                later.bounded[:0] = earlier.bounded
                later.receiver.fork = later.receiver.fork or earlier.receiver.fork
            self.streams[key] = later
        self.refused |= other.refused
        self.merged += other.merged
        self.tenants |= other.tenants
        for gateway, taken in other.taken.items():
            self.take(gateway, *taken)
        for gateway, forked in other.forked.items():
            self.forked[gateway] = self.forked.get(gateway, 0) + forked
        for gateway, counts in other.late_counts.items():
            self.late_counts[gateway] = self.late_counts.get(gateway, 0) + counts
        for tenant, surcharge in other.surcharge.items():
            self.charge(tenant, surcharge)
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

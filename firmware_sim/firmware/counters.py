"""What a device and a fleet have done so far: counters, a digest of what happened, and the journal for proofs.

Invariant: the digest depends on what happened only, not on order, resends, clocks, event ids or faults, so two runs of
one seed agree, and so do a fleet and a ledger that has everything once.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from firmware_sim.firmware.happening import Scan

DIGEST_BITS: Final = 256


@dataclass(slots=True)
class Counters:
    """One device's counters. `events` and `readings` are unique; `sent` and `resent` count publications."""

    events: int = 0
    readings: int = 0
    sent: int = 0
    resent: int = 0
    repeated: int = 0
    receipts: int = 0
    refused: int = 0
    readings_dropped: int = 0
    readings_skipped: int = 0
    memory_full: int = 0
    receipts_unreadable: int = 0
    reboots: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of the journal: what a device reported to its gateway, once."""

    device: str
    id: str
    scan: Scan


class EventDigest:
    """A digest of a multiset: the sum of the SHA-256 of its members, so that order does not matter and count does.

    Summing suits telling sets apart that differ by accident; it is no defence against somebody who chooses members
    (Clarke et al. 2003, https://doi.org/10.1007/978-3-540-40061-5_12, AdHash).
    """

    def __init__(self, total: int = 0) -> None:
        self.total = total

    def add(self, device: str, scan: Scan) -> None:
        """Add one event."""
        what = [device, scan.kind, scan.sku, scan.quantity, scan.source, scan.destination, scan.location, scan.lot]
        text = json.dumps(what, ensure_ascii=False, separators=(",", ":"))
        self.total += int.from_bytes(hashlib.sha256(text.encode()).digest())

    @classmethod
    def union(cls, digests: "Iterable[EventDigest]") -> "EventDigest":
        """The digest of all their members together."""
        return cls(sum(digest.total for digest in digests))

    def hexdigest(self) -> str:
        """The digest so far, 64 hex digits."""
        return f"{self.total % (1 << DIGEST_BITS):064x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCount:
    """A copy of one device's state: its counters, the events it still keeps, and how its link is."""

    gateway: str
    device: str
    events: int
    readings: int
    sent: int
    resent: int
    repeated: int
    receipts: int
    refused: int
    readings_dropped: int
    memory_full: int
    reboots: int
    waiting: int
    online: bool
    problem: str | None
    refusal: str | None


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """All devices of a fleet at one moment."""

    devices: tuple[DeviceCount, ...]
    digest: str
    at_ms: int

    @property
    def events(self) -> int:
        return sum(device.events for device in self.devices)

    @property
    def readings(self) -> int:
        return sum(device.readings for device in self.devices)

    @property
    def receipts(self) -> int:
        return sum(device.receipts for device in self.devices)

    @property
    def refused(self) -> int:
        return sum(device.refused for device in self.devices)

    @property
    def resent(self) -> int:
        return sum(device.resent for device in self.devices)

    @property
    def waiting(self) -> int:
        return sum(device.waiting for device in self.devices)

    @property
    def online(self) -> int:
        return sum(device.online for device in self.devices)

    def of(self, gateway: str) -> "FleetSnapshot":
        """The same, of one gateway's devices; the digest stays the fleet's."""
        return FleetSnapshot(_of(self.devices, gateway), self.digest, self.at_ms)


def _of(devices: Iterable[DeviceCount], gateway: str) -> tuple[DeviceCount, ...]:
    return tuple(device for device in devices if device.gateway == gateway)

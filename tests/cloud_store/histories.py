"""Random histories of one site, as entries, sealed frames and deliveries.

Small on purpose: few locations, SKUs and clock readings, so that ties, late counts and late movements are common.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, get_args

from hypothesis import strategies as st

from cloud_store.merge.arrivals import ArrivedFrame
from wire_protocol import clock, frames, names
from wire_protocol.entries import Count, LedgerEntry, Movement, MovementKind, Reading
from wire_protocol.frames import FrameHeader, LogHead
from wire_protocol.stock import EntryKey
from wire_protocol.topics import Stream

NOW_MS = 1_790_000_000_000
BOOT = names.ulid(NOW_MS, bytes(10))
EPOCH = names.ulid(NOW_MS, bytes(9) + b"\x01")
SHELVES = ("A-1", "A-2")
SKUS = ("screw",)
LOTS = (None, "L1")


def movement(
    hlc: int,
    kind: MovementKind,
    source: str,
    destination: str,
    quantity: int = 1,
    *,
    sku: str = "screw",
    **more: object,
) -> Movement:
    """A movement with everything else filled in."""
    body = {"hlc": hlc, "boot": BOOT, "mono_ms": 0, "sku": sku, "kind": kind, "quantity": quantity}
    return Movement.model_validate(body | {"source": source, "destination": destination} | more)


def count(hlc: int, location: str, quantity: int, sku: str = "screw", **more: object) -> Count:
    """A count with everything else filled in."""
    body = {"hlc": hlc, "boot": BOOT, "mono_ms": 0, "sku": sku, "quantity": quantity, "location": location}
    return Count.model_validate(body | more)


def _route(kind: MovementKind, image_store: str, other: str) -> tuple[str, str]:
    away = {
        "receive": (names.SUPPLIER, image_store),
        "pick": (image_store, names.CUSTOMER),
        "move": (image_store, other),
        "ship": (image_store, "@transit:berlin"),
        "arrive": ("@transit:berlin", image_store),
        "scrap": (image_store, names.SCRAP),
        "correct": (names.ADJUST, image_store),
    }
    return away[kind]


@st.composite
def _entry(draw: st.DrawFn, hlc: int) -> LedgerEntry:
    sku, lot = draw(st.sampled_from(SKUS)), draw(st.sampled_from(LOTS))
    image_store = draw(st.sampled_from(SHELVES))
    if draw(st.integers(0, 2)) == 0:
        return count(hlc, image_store, draw(st.integers(0, 20)), sku=sku, lot=lot)
    kind = draw(st.sampled_from(get_args(MovementKind)))
    other = draw(st.sampled_from([name for name in SHELVES if name != image_store]))
    source, destination = _route(kind, image_store, other)
    if kind == "correct" and draw(st.booleans()):
        source, destination = destination, source
    return movement(hlc, kind, source, destination, draw(st.integers(1, 9)), sku=sku, lot=lot)


@st.composite
def ledger(draw: st.DrawFn) -> list[LedgerEntry]:
    """What one gateway wrote: its clock readings rise, and meet those of the other gateways often."""
    steps = draw(st.lists(st.integers(1, 2), min_size=1, max_size=14))
    hlc, entries = clock.pack(NOW_MS), []
    for step in steps:
        hlc += step
        entries.append(draw(_entry(hlc)))
    return entries


@dataclass
class Chain:
    """Seals the frames of one stream of a gateway, and remembers what it sealed."""

    gateway: str
    stream: Stream = "ledger"
    epoch: str = EPOCH
    frame: int = 0
    seq: int = 0
    prev: str = ""
    sealed: list[bytes] = field(default_factory=list)

    def seal(
        self,
        entries: Sequence[LedgerEntry | Reading],
        boots: dict[str, int] | None = None,
        after: dict[str, LogHead] | None = None,
    ) -> ArrivedFrame:
        """The next frame, as it would arrive."""
        header = self._header(len(entries), boots, after)
        return self._next(frames.seal(header, entries), len(entries))

    def seal_columns(self, columns: object, count: int, boots: dict[str, int] | None = None) -> ArrivedFrame:
        """The next frame, with columns that no honest gateway writes."""
        header = self._header(count, boots, None).model_dump(exclude_defaults=True)
        plain = json.dumps(header | {"v": 1, "entries": columns}).encode()
        return self._next(zlib.compress(plain), count)

    def _header(self, count: int, boots: dict[str, int] | None, after: dict[str, LogHead] | None) -> FrameHeader:
        return FrameHeader(
            stream=self.stream,
            epoch=self.epoch,
            frame=self.frame + 1,
            first_seq=self.seq + 1,
            count=count,
            prev=self.prev or frames.genesis(self.gateway, self.epoch, self.stream),
            boots=boots or {},
            after=after or {},
        )

    def _next(self, payload: bytes, count: int) -> ArrivedFrame:
        self.frame, self.seq, self.prev = self.frame + 1, self.seq + count, frames.digest(payload)
        self.sealed.append(payload)
        return arrived(self.gateway, payload, self.stream)


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows, good or bad, as the columns of a frame; a row without a clock gets the first one's."""
    names = dict.fromkeys(name for row in rows for name in row if name not in {"hlc", "mono_ms"})
    made: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in names}
    hlcs = [row.get("hlc", rows[0]["hlc"]) for row in rows]
    walls = [clock.wall_ms(hlc) for hlc in hlcs]
    made["ms"] = [after - before for before, after in pairwise([0, *walls])]
    made["tick"] = [clock.counter(hlc) for hlc in hlcs]
    made["drift_ms"] = [wall - row.get("mono_ms", 0) for wall, row in zip(walls, rows, strict=True)]
    if "device_at_ms" in made and None not in made["device_at_ms"]:
        made["device_at_ms"] = [after - before for before, after in pairwise([0, *made["device_at_ms"]])]
    return made


def head(chain: Chain) -> LogHead:
    """Where a chain ends, as a new epoch says that it knows it."""
    return LogHead(frame=chain.frame, digest=chain.prev)


def arrived(gateway: str, payload: bytes, stream: Stream = "ledger") -> ArrivedFrame:
    """A frame as a worker hands it to the merge."""
    return ArrivedFrame.read(gateway, stream, payload, NOW_MS)


def keyed(gateway: str, entries: Sequence[LedgerEntry]) -> list[tuple[EntryKey, LedgerEntry]]:
    """The entries of a gateway as the oracle wants them."""
    return [(EntryKey(entry.hlc, gateway, EPOCH, seq), entry) for seq, entry in enumerate(entries, 1)]


def seal_all(gateway: str, entries: Sequence[LedgerEntry], sizes: Sequence[int]) -> list[ArrivedFrame]:
    """Seal a ledger into frames, using the sizes in turn."""
    chain, sealed, start = Chain(gateway), list[ArrivedFrame](), 0
    while start < len(entries):
        size = sizes[len(sealed) % len(sizes)]
        sealed.append(chain.seal(entries[start : start + size]))
        start += size
    return sealed

"""Bytes a movement on the uplink: frames of 100 real transactions, beside the same movements as a list of objects."""

import itertools
import json
import random
import zlib
from typing import TYPE_CHECKING, Any

from edge_agent.ledger.drafts import Stamp, draft
from firmware_sim.recordings import recording
from firmware_sim.scenarios import builtin
from wire_protocol import clock, frames, names
from wire_protocol.frames import FrameHeader

if TYPE_CHECKING:
    from wire_protocol.entries import LedgerEntry

MOVEMENTS = 10_000
FRAME_ENTRIES = 100
START_MS = 1_763_700_000_000


def _entries() -> "list[LedgerEntry]":
    """Recorded sales as a gateway would have booked them: several tills, event ids, references."""
    rng, boot, at_ms = random.Random(1), names.ulid(START_MS, bytes(10)), START_MS
    entries: list[LedgerEntry] = []
    for number, row in enumerate(itertools.islice(recording.read(builtin.ONLINE_RETAIL), MOVEMENTS)):
        at_ms += rng.randrange(400)
        sold = row.quantity > 0
        made = draft(
            "pick" if sold else "receive",
            row.sku,
            abs(row.quantity),
            device=row.device,
            source="shop" if sold else names.CUSTOMER,
            destination=None if sold else "shop",
            event=f"1-{number}",
            reference=str(536_365 + number // 20),
            device_at_ms=at_ms - rng.randrange(50),
        )
        entries.append(made.entry(Stamp(clock.pack(at_ms), boot, at_ms - START_MS)))
    return entries


def run() -> dict[str, Any]:
    """Measure; bytes a movement."""
    entries = _entries()
    epoch = names.ulid(START_MS + 1, bytes(10))
    prev = frames.genesis("gw-bench", epoch, "ledger")
    columnar = rows = 0
    for number, start in enumerate(range(0, len(entries), FRAME_ENTRIES), start=1):
        chunk = entries[start : start + FRAME_ENTRIES]
        header = FrameHeader(
            stream="ledger",
            epoch=epoch,
            frame=number,
            first_seq=start + 1,
            count=len(chunk),
            prev=prev,
            boots={chunk[0].boot: 0},
        )
        encoded = frames.seal(header, chunk)
        prev = frames.digest(encoded)
        columnar += len(encoded)
        envelope = header.model_dump() | {"entries": [entry.model_dump(exclude_none=True) for entry in chunk]}
        rows += len(zlib.compress(json.dumps(envelope, separators=(",", ":")).encode(), frames.COMPRESSION_LEVEL))
    return {
        "movements": len(entries),
        "bytes_a_movement": columnar / len(entries),
        "bytes_a_movement_as_objects": rows / len(entries),
        "ratio_to_objects": columnar / rows,
    }

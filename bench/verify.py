"""`stocktide edge ledger verify` on a million entries, beside the time that reading and hashing them alone takes."""

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

from edge_agent.ledger import audit, database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.drafts import draft
from edge_agent.ledger.ledger import Ledger

ENTRIES = 1_000_000
BATCH = 20_000
COUNTED = 20  # one entry in this many is a count


def run() -> dict[str, Any]:
    """Measure; seconds."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.db"
        with Ledger.create(path, "gw-bench", SystemClock()) as ledger:
            for first in range(0, ENTRIES, BATCH):
                with database.transaction(ledger.connection):
                    ledger.append([_draft(number) for number in range(first, first + BATCH)])
            began = time.perf_counter()
            found = audit.verify(ledger.connection)
            verify_s = time.perf_counter() - began
            assert (found.findings, found.entries) == ([], ENTRIES)
            began = time.perf_counter()
            digest = b""
            for (body,) in ledger.connection.execute("SELECT body FROM entry ORDER BY seq"):
                digest = hashlib.blake2b(digest + body.encode(), digest_size=16).digest()
            hash_s = time.perf_counter() - began
    return {
        "entries": ENTRIES,
        "verify_s": verify_s,
        "verify_entries_per_s": ENTRIES / verify_s,
        "read_and_hash_s": hash_s,
        "ratio_to_read_and_hash": verify_s / hash_s,
    }


def _draft(number: int) -> Any:
    sku, image_store = f"SKU-{number % 2_000:04d}", f"A-{number % 40:02d}"
    cause = {"device": f"till-{number % 20}", "event": f"e-{number}"}
    if number % COUNTED == 0:
        return draft("count", sku, number % 90, location=image_store, **cause)
    return draft("receive", sku, 1 + number % 9, destination=image_store, **cause)

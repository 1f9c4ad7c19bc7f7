"""The technician's wait: `stocktide edge stock` from a cold start, beside a Python that does nothing."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edge_agent.ledger import audit, database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.drafts import draft
from edge_agent.ledger.ledger import Ledger

ENTRIES = 100_000
RUNS = 7


def _seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def run() -> dict[str, Any]:
    """Measure; seconds, median of several runs, on a ledger of 100,000 entries."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.db"
        with Ledger.create(path, "gw-bench", SystemClock()) as ledger:
            drafts = [draft("receive", f"SKU-{n % 2_000:04d}", 1 + n % 9, destination="A-01") for n in range(ENTRIES)]
            with database.transaction(ledger.connection):
                ledger.append(drafts)
            began = time.perf_counter()
            findings = audit.verify(ledger.connection).findings
            verify_s = time.perf_counter() - began
            assert findings == []
        stock = statistics.median(
            _seconds("-m", "stocktide", "edge", "stock", "SKU-0001", "--ledger", str(path)) for _ in range(RUNS)
        )
        nothing = statistics.median(_seconds("-c", "pass") for _ in range(RUNS))
    return {
        "edge_stock_s": stock,
        "empty_python_s": nothing,
        "ratio_to_empty_python": stock / nothing,
        "verify_entries_per_s": ENTRIES / verify_s,
    }

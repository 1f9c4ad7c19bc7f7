"""Compares the balances in the ledger's file with their digest, now and then.

Where they differ, the file was changed by something else than this program, and the cloud gets what is in the file.
"""

import asyncio
import contextlib
from pathlib import Path

import structlog

from edge_agent.ledger import database, stock_digest
from wire_protocol.proof import StockDigest

log = structlog.get_logger("edge_agent.upkeep.stock_scan")


class StockScan:
    """Scans the file every `interval_s` seconds; `damaged` is the stock that was found when it is not what was kept."""

    def __init__(self, ledger: Path, interval_s: float) -> None:
        self._ledger, self._interval_s = ledger, interval_s
        self.damaged: StockDigest | None = None

    async def run(self) -> None:
        """Scan until cancelled."""
        while True:
            found = await asyncio.to_thread(self._scan)
            self.damaged = None if found.intact else found.found
            if not found.intact:
                log.error("stock_damaged", hint="stocktide edge ledger verify, then stocktide edge ledger rebuild")
            await asyncio.sleep(self._interval_s)

    def _scan(self) -> stock_digest.ScannedStock:
        with contextlib.closing(database.open_reader(self._ledger)) as connection:
            return stock_digest.scan(connection)

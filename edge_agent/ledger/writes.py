"""Writes of coroutines: handed to the ledger's writer and waited for.

Invariant: a write that was handed over is committed or refused before its coroutine goes on, even a cancelled one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from edge_agent.errors import LedgerBusy, LedgerFull
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.writer import Submit

T = TypeVar("T")

RETRY_S: Final = 1.0

log = structlog.get_logger("edge_agent.ledger.writer")


@dataclass(frozen=True, slots=True)
class PatientWrites:
    """A `Write` that tries again while the disk is full."""

    submit: Submit

    async def __call__(self, run: Callable[[Ledger], T]) -> T:
        """Write, and wait for the commit."""
        while True:
            written = asyncio.wrap_future(self.submit(run))
            try:
                return await asyncio.shield(written)
            except asyncio.CancelledError:
                # The writer will commit it whatever we do; the next contact must find it done.
                await asyncio.wait([written])
                raise
            except (LedgerFull, LedgerBusy) as error:
                log.warning("write_waits_for_ledger", reason=str(error))
                await asyncio.sleep(RETRY_S)

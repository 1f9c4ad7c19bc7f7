"""Hours: writes down what was moved in each hour of a shelf, some time after the merges, for late counts to come."""

from collections.abc import Coroutine, Iterator
from typing import Any, Final

from cloud_ingest.context import Context
from cloud_store.merge import late_counts
from cloud_store.merge.cells import PendingHours

WRITE_S: Final = 30.0
ROWS_MAX: Final = 2_000  # in one statement: some 10 ms, so that no merge waits for it


class HourWriter:
    """Writes the hours that the merges of this worker have left.

    What fails is not tried again: hours that are missing are made from the movements when they are needed.
    """

    def __init__(self, context: Context, pending: PendingHours) -> None:
        self._context, self._pending = context, pending

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.every(WRITE_S, "hours", self.write)

    async def write(self) -> None:
        """Write all that is pending now."""
        hours = self._pending.take()
        for start in range(0, len(hours.hours), ROWS_MAX):
            part = hours.where(slice(start, start + ROWS_MAX))
            await self._context.database.run(late_counts.add_hours, part)

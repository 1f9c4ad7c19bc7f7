"""History: folds the hours that merges write into those that were there, many merges at once.

Late counts and questions about the past read both tables, so nothing depends on when this happens but their speed.
"""

from collections.abc import Coroutine, Iterator
from typing import Any, Final

from cloud_ingest.context import Context
from cloud_store.merge import late_counts

FOLD_S: Final = 15.0
ROWS_MAX: Final = 5_000  # in one statement: some 30 ms


class HistoryFolder:
    """Folds for all workers: each takes what no other has taken."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.every(FOLD_S, "history", self.fold)

    async def fold(self) -> None:
        """Fold all that there is now."""
        while await self._context.database.run(late_counts.fold_history, ROWS_MAX) == ROWS_MAX:
            pass

"""Dashboards: ends sessions of database users that take longer than they may.

Such a session may lift every limit that was set for it, and hold a snapshot or a table's lock as long as it likes.
"""

from collections.abc import Coroutine, Iterator
from typing import Any, Final

import structlog

from cloud_ingest.context import Context
from cloud_store.tenancy import database_users

LOOK_S: Final = 10.0
_LOG = structlog.get_logger()


class Dashboards:
    """Looks at the sessions now and then; any worker may."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.every(LOOK_S, "dashboards", self.look)

    async def look(self) -> None:
        """End what is overdue."""
        for session in await self._context.database.run(database_users.end_overdue):
            _LOG.warning("dashboard_ended", role=session.role, state=session.state, ended=session.ended)

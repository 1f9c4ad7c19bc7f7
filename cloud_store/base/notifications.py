"""What wakes the workers: something was written that a gateway should get."""

from typing import Final

from cloud_store.base import sql
from cloud_store.base.connection import translated
from cloud_store.base.session import Session

_SQL: Final = sql.load("commands")


class DownlinkFeed(Session):
    """Tells a worker that a twin has changed or a command was given, over a connection of its own."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for a change. Returns whether there was one; the connection may have been away meanwhile."""
        with translated():
            fresh = self._connection is None or self._connection.closed
            connection = self._connected()
            if fresh:
                connection.execute(_SQL["listen"])
            return fresh or any(True for _ in connection.notifies(timeout=timeout_s, stop_after=1))

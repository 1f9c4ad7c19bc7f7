"""A store's one connection, opened when it is needed and again after it was lost."""

from dataclasses import dataclass

from cloud_store.base.connection import Connection, connect


@dataclass(slots=True)
class Session:
    """What stores that are used by one thread at a time stand on. Not thread-safe: one call at a time."""

    database_url: str
    application: str = "stocktide"
    _connection: Connection | None = None

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self.database_url, application=self.application, role="stocktide_ingest")
        return self._connection

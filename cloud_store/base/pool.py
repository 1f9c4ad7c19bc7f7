"""A bounded pool of connections for readers that run side by side, such as HTTP requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import psycopg_pool

from cloud_store.base.connection import READ_ONLY_OPTIONS, Connection, ImpatientConnection, become, translated
from cloud_store.base.errors import DatabaseUnavailable


class ReadPool:
    """Connections of the API: its own database role, read-only unless a transaction says otherwise.

    `with` it; opening does not wait for the database, so a reader starts without it.
    """

    def __init__(self, database_url: str, *, application: str, connections_max: int, wait_s_max: float) -> None:
        options: dict[str, Any] = {
            "autocommit": True, "application_name": application, "options": READ_ONLY_OPTIONS, "connect_timeout": 5,
        }  # fmt: skip
        self._pool = psycopg_pool.ConnectionPool(
            database_url, connection_class=ImpatientConnection, kwargs=options,
            min_size=0, max_size=connections_max, timeout=wait_s_max, open=False,
            configure=lambda connection: become(connection, "stocktide_api"),
            check=psycopg_pool.ConnectionPool.check_connection, name=application,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._pool.open(wait=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection, given back at the end of the block.

        Raises:
            DatabaseUnavailable: none became free, or the database is away.
        """
        try:
            with translated(), self._pool.connection() as connection:
                yield connection
        except psycopg_pool.PoolTimeout as error:
            raise DatabaseUnavailable(str(error)) from error

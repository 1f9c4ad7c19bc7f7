"""The database as one process uses it: a bounded number of connections, and a thread for each call that waits.

`await database.run(function, …)` calls `function(connection, …)` in a thread; `database.call` does the same for code
that is in a thread already. A connection is opened when a call needs it, kept for the next one, and dropped when it was
lost.

Not psycopg_pool: there a call that finds no server waits for its whole time limit and does not learn why; a worker must
know at once, because it then tells its gateways to hold their frames (ADR 17).

Invariant: no more than `connections_max` connections are open at a time. Invariant: a call that has begun is finished
before its caller goes on, even when it is cancelled: a transaction is committed or rolled back, never abandoned.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import BoundedSemaphore, Lock
from typing import Concatenate, Final, ParamSpec, Self, TypeVar

from cloud_store.base.connection import Connection, Role, connect, translated
from cloud_store.base.errors import DatabaseUnavailable, StoreError

# A connection that was idle for longer is looked at before it is used: its server may have been restarted.
IDLE_S_MAX: Final = 1.0
WAIT_S_MAX: Final = 30.0

P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """A bounded set of connections of one role. Use it as a context manager; opening waits for no server.

    Args:
        url: where the database is.
        application: the name that the server shows.
        role: the database role that connections take.
        connections_max: connections, and calls at a time, at most.
        wait_s_max: seconds that `connection` waits for one to be given back.
        options: session options for the server, as in `-c name=value`.
    """

    def __init__(
        self,
        url: str,
        *,
        application: str,
        connections_max: int,
        role: Role | None = "stocktide_ingest",
        wait_s_max: float = WAIT_S_MAX,
        options: str = "",
    ) -> None:
        self._url, self._application, self._role, self._options = url, application, role, options
        self._connections_max, self._wait_s_max = connections_max, wait_s_max
        self._free = BoundedSemaphore(connections_max)
        self._idle: list[tuple[Connection, float]] = []
        self._idle_lock = Lock()
        self._threads = ThreadPoolExecutor(connections_max, thread_name_prefix=application)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads after their calls, and close the connections."""
        self._threads.shutdown(cancel_futures=True)
        self._drop_idle()

    async def run(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function(connection, …)` in a thread.

        Raises:
            StoreError: as the function and `connection` do.
        """
        return await finished(self._threads.submit(partial(self.call, function, *args, **kwargs)))

    def call(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function(connection, …)` here and now.

        Raises:
            StoreError: as the function and `connection` do.
        """
        with self.connection() as connection:
            return function(connection, *args, **kwargs)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection for the block; the driver's errors leave it as the store's.

        Raises:
            DatabaseUnavailable: no server answers, the connection was lost, or none became free in time.
        """
        if not self._free.acquire(timeout=self._wait_s_max):
            raise DatabaseUnavailable(f"All {self._connections_max} connections to the database are in use.")
        try:
            connection = self._take()
            try:
                with translated():
                    yield connection
            except DatabaseUnavailable:
                self._drop_idle()  # what ended this one has ended the others
                raise
            finally:
                self._give_back(connection)
        finally:
            self._free.release()

    def _take(self) -> Connection:
        with self._idle_lock:
            connection, since_s = self._idle.pop() if self._idle else (None, 0.0)
        if connection is not None and (time.monotonic() - since_s < IDLE_S_MAX or _answers(connection)):
            return connection
        if connection is not None:
            connection.close()
            self._drop_idle()
        return connect(self._url, application=self._application, role=self._role, options=self._options)

    def _give_back(self, connection: Connection) -> None:
        if connection.closed or connection.broken or connection.info.transaction_status:
            connection.close()
            return
        with self._idle_lock:
            self._idle.append((connection, time.monotonic()))

    def _drop_idle(self) -> None:
        with self._idle_lock:
            dropped, self._idle = self._idle, []
        for connection, _ in dropped:
            connection.close()


async def finished(call: "Future[T]") -> T:
    """The result of a call in another thread. A cancellation takes effect when the call has ended, or has not begun."""
    waiting = asyncio.wrap_future(call)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        while not call.cancel() and not waiting.done():
            try:
                await asyncio.wait([waiting])
            except asyncio.CancelledError:
                continue  # asked a second time: the call still has to end
        raise


def _answers(connection: Connection) -> bool:
    """Whether the server of an idle connection is still there."""
    try:
        with translated():
            connection.execute("")
    except StoreError:
        return False
    return True

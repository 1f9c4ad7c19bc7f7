"""The bounded set of connections that a process uses: one call, one connection, none abandoned."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from cloud_store.base.connection import Connection, connect
from cloud_store.base.database import Database
from cloud_store.base.errors import DatabaseUnavailable, StoreError, Unstorable
from testbed.eventually import eventually

pytestmark = pytest.mark.services


def backend(connection: Connection) -> int:
    """Which connection this is."""
    return connection.info.backend_pid


def slowly(connection: Connection, began: threading.Event, may_end: threading.Event) -> int:
    """A call that ends when it may."""
    began.set()
    assert may_end.wait(30)
    return backend(connection)


async def test_calls_share_connections_and_never_use_more_than_they_may(database_url: str) -> None:
    """Twenty workers must fit into a server's hundred connections."""
    with Database(database_url, application="counted", role=None, connections_max=2) as database:
        used = await asyncio.gather(*(database.run(backend) for _ in range(20)))
        assert 1 <= len(set(used)) <= 2
        with closing(connect(database_url, application="test")) as other:
            count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'counted'"
            assert (other.execute(count).fetchone() or (0,))[0] == len(set(used))
        assert set(await asyncio.gather(database.run(backend), database.run(backend))) <= set(used)
    with closing(connect(database_url, application="test")) as other:
        eventually(lambda: other.execute(count).fetchone() == (0,))


async def test_a_call_that_has_begun_is_finished_before_its_caller_goes_on(database_url: str) -> None:
    """A transaction that is abandoned half way would be committed after its worker has given up its shards."""
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def call(connection: Connection) -> None:
        slowly(connection, began, may_end)
        ended.set()

    with Database(database_url, application="test", role=None, connections_max=1) as database:
        task = asyncio.create_task(database.run(call))
        await asyncio.to_thread(began.wait, 30)
        for _ in range(3):  # whoever asks three times waits all the same
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()


async def test_a_call_that_has_not_begun_is_not_made_for_a_caller_that_is_gone(database_url: str) -> None:
    """It waits for a connection: nothing was begun that must be finished."""
    began, may_end, made = threading.Event(), threading.Event(), list[int]()
    with Database(database_url, application="test", role=None, connections_max=1) as database:
        first = asyncio.create_task(database.run(slowly, began, may_end))
        await asyncio.to_thread(began.wait, 30)
        second = asyncio.create_task(database.run(lambda connection: made.append(backend(connection))))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        may_end.set()
        assert await first
    assert made == []


async def test_a_server_that_is_gone_is_told_at_once_and_a_new_one_is_found(
    private_database: Callable[..., Any],
) -> None:
    """A worker tells its gateways to hold their frames; a pool that waits for its time limit would tell them later."""
    server = private_database()
    with Database(server.url, application="test", role=None, connections_max=2) as database:
        first = await database.run(backend)
        await asyncio.to_thread(server.kill)
        began_s = time.monotonic()
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable, match=r"\w"):
                await database.run(lambda connection: connection.execute("SELECT 1"))
        assert time.monotonic() - began_s < 30, "it did not wait for a time limit"
        await asyncio.to_thread(server.start)
        assert await database.run(backend) != first


async def test_the_drivers_errors_leave_it_as_the_stores_and_the_connection_is_used_again(database_url: str) -> None:
    """Callers know no driver; a statement that fails costs no connection, a transaction left open does."""
    with Database(database_url, application="test", role=None, connections_max=1) as database:
        first = await database.run(backend)
        with pytest.raises(Unstorable):
            await database.run(lambda connection: connection.execute("SELECT %s::text", ["\0"]))
        with pytest.raises(StoreError, match="division by zero"):
            await database.run(lambda connection: connection.execute("SELECT 1/0"))
        assert await database.run(backend) == first
        await database.run(lambda connection: connection.execute("BEGIN"))
        assert await database.run(backend) != first

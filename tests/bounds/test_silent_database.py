"""A database that accepts connections and then says nothing, as one does whose disk hangs."""

import os
import signal
from collections.abc import Callable
from contextlib import closing

import pytest

from cloud_store.base import connection as connections
from cloud_store.base.errors import DatabaseUnavailable
from testbed.services import PrivateDatabase


@pytest.mark.bound("cloud_store.base.connection.SILENCE_S_MAX")
def test_a_silent_database_is_given_up(
    private_database: Callable[..., PrivateDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that waits forever neither slows its gateways down nor ends when it is told to.

    The limits of a statement are kept by the server, and its kernel answers for it: nothing else would notice.
    """
    database = private_database()
    with closing(connections.connect(database.url, application="tests")) as connection:
        pid = connection.info.backend_pid
        connection.execute("CREATE TABLE pick (n integer)")
        monkeypatch.setattr(connections.ImpatientConnection, "silence_s", 0.5)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(DatabaseUnavailable), connections.translated(), connection.transaction():
                connection.execute("INSERT INTO pick VALUES (1)")
            assert connection.closed
        finally:
            os.kill(pid, signal.SIGCONT)
    with closing(connections.connect(database.url, application="tests")) as connection:
        assert connection.execute("SELECT count(*) FROM pick").fetchone() == (0,)

"""The test servers themselves: what every other test relies on."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from mqtt_client import Connection, ConnectionOptions, connect
from testbed.services import PrivateBroker, PrivateDatabase, databases, debian_root, disk, server
from testbed.services.errors import ServerFailed
from testbed.services.processes import ProcessRecord
from wire_protocol.address import BrokerAddress

MakeDatabase = Callable[..., PrivateDatabase]
MakeBroker = Callable[..., PrivateBroker]


def test_a_killed_database_keeps_what_was_committed_and_nothing_else(private_database: MakeDatabase) -> None:
    """Every fault test of the store stands on this: SIGKILL must be survivable, and must lose open transactions."""
    database = private_database()
    port = database.port
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE pick (n integer)")
        connection.execute("INSERT INTO pick VALUES (1)")
    with psycopg.connect(database.url) as open_transaction:
        open_transaction.execute("INSERT INTO pick VALUES (2)")
        database.kill()
        assert not database.is_running
        with pytest.raises(psycopg.OperationalError):
            open_transaction.execute("SELECT 1")
    database.start()
    assert database.port == port
    with psycopg.connect(database.url) as connection:
        assert connection.execute("SELECT n FROM pick").fetchall() == [(1,)]


def test_a_database_is_durable_and_has_timescaledb(empty_database_url: str) -> None:
    """With fsync off the fault tests would prove nothing; without the extension the schema would be another one."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION timescaledb")
        connection.execute("CREATE TABLE reading (at timestamptz NOT NULL, value float8)")
        connection.execute("SELECT create_hypertable('reading', by_range('at'))")
        settings = [connection.execute(f"SHOW {name}").fetchone() for name in ("fsync", "synchronous_commit")]
    assert settings == [("on",), ("on",)]


def test_a_replica_that_lags_is_promoted_with_what_it_has(private_database: MakeDatabase) -> None:
    """The failover test stands on this: what was committed after the replica stopped listening must be gone."""
    primary = private_database()
    with psycopg.connect(primary.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE pick (n integer)")
        connection.execute("INSERT INTO pick VALUES (1)")
    replica = private_database(primary=primary)
    with (
        psycopg.connect(replica.url, autocommit=True) as connection,
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
    ):
        connection.execute("INSERT INTO pick VALUES (9)")
    replica.stop_replicating()
    with psycopg.connect(primary.url, autocommit=True) as connection:
        connection.execute("INSERT INTO pick VALUES (2)")
    primary.kill()
    replica.promote()
    with psycopg.connect(replica.url, autocommit=True) as connection:
        assert connection.execute("SELECT n FROM pick").fetchall() == [(1,)]
        connection.execute("INSERT INTO pick VALUES (3)")


@pytest.mark.skipif(not disk.can_mount(), reason="only root can mount a small disk")
def test_a_small_disk_fills_and_is_freed_and_unmounted(private_database: MakeDatabase) -> None:
    """A disk that never fills proves nothing, and one that stays mounted fills the machine's table of mounts."""
    database = private_database(disk_mb=150)
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE pick (n text)")
        assert disk.fill(database.data) > 0
        with pytest.raises(psycopg.errors.DiskFull):
            connection.execute("INSERT INTO pick SELECT repeat(n::text, 500) FROM generate_series(1, 1000) n")
        disk.free(database.data)
        connection.execute("INSERT INTO pick VALUES ('1')")
    place = database.data
    assert place.is_mount()
    database.close()
    assert not place.exists()


def test_a_template_is_filled_once_and_copied_while_timescaledb_runs(
    private_database: MakeDatabase,
) -> None:
    """TimescaleDB's scheduler enters each database; if it stayed in the template, copies would fail at random."""
    url = private_database().url
    filled: list[str] = []

    def fill(template_url: str) -> None:
        filled.append(template_url)
        with psycopg.connect(template_url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION timescaledb")
            connection.execute("CREATE TABLE item (sku text)")

    for copy in ("one", "two"):
        databases.ensure_template(url, "template_item", fill)
        with databases.database(url, copy, template="template_item") as copy_url, psycopg.connect(copy_url) as inside:
            assert inside.execute("SELECT count(*) FROM item").fetchone() == (0,)
    assert len(filled) == 1
    with psycopg.connect(url) as connection:
        left = connection.execute("SELECT datname FROM pg_database WHERE datname IN ('one', 'two')").fetchall()
    assert left == []


def _connect(url: str) -> AbstractAsyncContextManager[Connection]:
    return connect(ConnectionOptions(address=BrokerAddress.parse(url), client_id=""))


async def test_a_message_goes_through_the_shared_broker(mqtt_url: str, unique_name: Callable[..., str]) -> None:
    """The tests of every link need a broker that lets them in and delivers."""
    topic = unique_name("topic")
    async with _connect(mqtt_url) as client:
        await client.subscribe(topic)
        await client.publish(topic, b"scan")
        message = await anext(client.messages())
    assert message.payload == b"scan"


@pytest.mark.parametrize("persistent", [True, False])
async def test_a_killed_broker_comes_back_on_its_port_with_or_without_its_memory(
    private_broker: MakeBroker, *, persistent: bool
) -> None:
    """Tests of "broker restarted empty" and "broker restarted with its sessions" need both kinds."""
    broker = private_broker(persistent=persistent)
    async with _connect(broker.url) as client:
        await client.publish("kept", b"value", retain=True)
        if persistent:
            broker.save()
    broker.kill()
    assert not broker.is_running
    broker.start()
    async with _connect(broker.url) as client:
        await client.subscribe("#")
        await client.publish("end", b"")
        message = await anext(client.messages())
    assert message.topic == ("kept" if persistent else "end")


def test_a_broker_that_cannot_start_says_why(private_broker: MakeBroker) -> None:
    """A rendered configuration with a mistake must be found from the failure alone."""
    with pytest.raises(ServerFailed, match="Unknown configuration variable"):
        private_broker(lambda port, _: f"listener {port}\nno_such_setting 1\n")


def test_servers_of_a_killed_run_are_found_and_removed(private_broker: MakeBroker) -> None:
    """A test run that is killed must not leave servers behind forever."""
    scratch = private_broker().installation.scratch
    program = (
        "from testbed.services import PrivateBroker; broker = PrivateBroker(); broker.start(); "
        "print(broker.directory, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        directory = Path(run.stdout.readline().decode().strip())
        run.send_signal(signal.SIGKILL)
    process = ProcessRecord.model_validate(json.loads((directory / "server.json").read_text())["process"])
    assert process.find() is not None
    server.remove_orphans(scratch)
    assert process.find() is None
    assert not directory.exists()


def test_the_root_is_named_after_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the package list must lead to another root, never to an old one with the wrong packages."""
    recipe = debian_root.SERVICES
    assert debian_root.path() == recipe.path()
    others = (
        replace(recipe, packages=("mosquitto",)),
        replace(recipe, options=("--variant=minbase",)),
        replace(recipe, name="x"),
    )
    assert len({each.path() for each in (recipe, *others)}) == len(others) + 1
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert debian_root.path().parent == Path("/elsewhere/stocktide")

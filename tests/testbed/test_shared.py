"""The life of the shared servers: up, healed, kept by those who use them, and gone."""

import sys
from pathlib import Path

import psycopg
import pytest

from testbed.services import NotRunning, PrivateDatabase, shared

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("_own_state")]


@pytest.fixture
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Servers of this test alone, beside the ones that the suite uses."""
    monkeypatch.setattr(shared, "HOME", tmp_path)
    monkeypatch.setattr(shared, "STATE", tmp_path / "state.json")
    monkeypatch.delenv(shared.DATABASE_VARIABLE, raising=False)
    monkeypatch.delenv(shared.MQTT_VARIABLE, raising=False)


def _server_now() -> PrivateDatabase:
    server = PrivateDatabase()
    directory = shared.State.model_validate_json(shared.STATE.read_text()).database
    assert directory is not None
    assert server.adopt(directory)
    return server


def test_up_heals_a_dead_server_and_keeps_its_data_and_address() -> None:
    """A developer whose database died says `make services` again and goes on."""
    with pytest.raises(NotRunning, match="make services"):
        shared.database_url()
    try:
        shared.up()
        urls = shared.database_url(), shared.mqtt_url()
        with psycopg.connect(urls[0], autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (n integer)")
        _server_now().kill()
        with pytest.raises(NotRunning):
            shared.database_url()
        shared.up()
        assert (shared.database_url(), shared.mqtt_url()) == urls
        with psycopg.connect(urls[0]) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        directory = _server_now().directory
    finally:
        shared.down()
    assert not directory.exists()


@pytest.mark.parametrize("kept", [True, False])
def test_run_keeps_the_exit_code_and_removes_only_what_it_started(*, kept: bool) -> None:
    """`make test` must fail when a test fails, and must not stop the servers a developer keeps."""
    try:
        if kept:
            shared.up()
        assert shared.run([sys.executable, "-c", "import sys; sys.exit(7)"]) == 7
        assert shared.STATE.exists() == kept
    finally:
        shared.down()


def test_given_servers_are_used_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """With docker compose or a managed database, nothing is started here."""
    monkeypatch.setenv(shared.DATABASE_VARIABLE, "postgresql://there/test")
    monkeypatch.setenv(shared.MQTT_VARIABLE, "mqtt://there:1883")
    shared.up()
    state = shared.State.model_validate_json(shared.STATE.read_text())
    assert (state.database, state.broker) == (None, None)
    assert (shared.database_url(), shared.mqtt_url()) == ("postgresql://there/test", "mqtt://there:1883")

"""Fixtures for the real servers: a database of its own for each test, the shared broker, private servers to break.

Invariant: a test that asks for a server is marked `services`, and fails when the servers are not up: it never skips.
"""

import gc
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, TypeVar

import pytest

from cloud_store.base import migrations
from cloud_store.base.connection import connect
from cloud_store.tenancy import registry
from edge_agent.agent import GC_THRESHOLDS
from testbed import services
from testbed.agent_process import AgentProcess
from testbed.services import PrivateBroker, PrivateDatabase, ServicesError, databases
from testbed.worker_process import WorkerProcess, Workers
from tests.cloud_ingest.sites import Site

SERVER_FIXTURES: Final = frozenset(
    {"database_url", "empty_database_url", "mqtt_url", "private_broker", "private_database"}
)
RUN_VARIABLE: Final = "STOCKTIDE_TEST_RUN"
T = TypeVar("T")


def pytest_configure() -> None:
    """Name this run before pytest-xdist starts its workers, which inherit the name and so share one template."""
    gc.set_threshold(*GC_THRESHOLDS)  # the tests hold ledgers as agents do
    os.environ.setdefault(RUN_VARIABLE, secrets.token_hex(6))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a server, so that `-m 'not services'` needs no list."""
    for item in items:
        if SERVER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.services)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Drop this run's template, in the process that outlives the pytest-xdist workers."""
    if hasattr(session.config, "workerinput"):
        return
    try:
        databases.drop(services.database_url(), _template_name())
    except ServicesError:
        return  # without servers there is no template either


@pytest.fixture
def unique_name() -> Callable[..., str]:
    """Make names that no other test uses: `unique_name()` gives `gw-3f9a2c7d`, `unique_name("site")` `site-…`."""

    def make(prefix: str = "gw") -> str:
        return f"{prefix}-{secrets.token_hex(4)}"

    return make


@pytest.fixture
def database_url(_server_url: str, _template: str, unique_name: Callable[..., str]) -> Iterator[str]:
    """A migrated database of its own on the shared TimescaleDB server, dropped after the test."""
    with databases.database(_server_url, unique_name("test"), template=_template) as url:
        yield url


@pytest.fixture
def empty_database_url(_server_url: str, unique_name: Callable[..., str]) -> Iterator[str]:
    """A database of its own without any table, dropped after the test."""
    with databases.database(_server_url, unique_name("test")) as url:
        yield url


@pytest.fixture
def mqtt_url() -> str:
    """The shared Mosquitto, `mqtt://127.0.0.1:PORT`: anonymous, with long queues. Use `unique_name` for topics."""
    return _or_fail(services.mqtt_url)


@pytest.fixture
def private_database() -> Iterator[Callable[..., PrivateDatabase]]:
    """Make started PostgreSQL servers that the test may stop, kill and restart: `private_database(settings=…)`."""
    with ExitStack() as servers:
        yield lambda **options: servers.enter_context(_or_fail(lambda: PrivateDatabase(**options)))


@pytest.fixture
def private_broker() -> Iterator[Callable[..., PrivateBroker]]:
    """Make started brokers that the test may stop, kill and restart: `private_broker(config, persistent=True)`."""
    with ExitStack() as servers:
        yield lambda *config, **options: servers.enter_context(_or_fail(lambda: PrivateBroker(*config, **options)))


@pytest.fixture
def agents() -> Iterator[Callable[..., AgentProcess]]:
    """Make agents; whatever is left of them is killed after the test."""
    made: list[AgentProcess] = []

    def make(ledger: Path, *options: str, **environment: str) -> AgentProcess:
        made.append(AgentProcess(ledger, list(options), os.environ | environment))
        return made[-1]

    yield make
    for agent in made:
        if agent.is_running:
            agent.kill()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Workers]:
    """Make started workers: `worker("one", database_url, mqtt_url)`; all are killed at the end."""
    with ExitStack() as processes:

        def make(name: str, database_url: str, mqtt_url: str, **settings: str) -> WorkerProcess:
            made = WorkerProcess(name, database_url, mqtt_url, tmp_path, settings).start()
            processes.callback(made.kill)
            return made

        yield make


@pytest.fixture
def site_at(unique_name: Callable[..., str]) -> Callable[[str], Site]:
    """Make a site in a migrated database."""

    def make(database_url: str) -> Site:
        made = Site(database_url, unique_name("acme"))
        with closing(connect(database_url, application="test")) as connection:
            registry.add_tenant(connection, made.prefix)
            registry.add_site(connection, made.prefix, "berlin")
        return made

    return make


@pytest.fixture(scope="session")
def _server_url() -> str:
    return _or_fail(services.database_url)


@pytest.fixture(scope="session")
def _template(_server_url: str) -> str:
    """The name of a migrated database, made once per run."""
    databases.ensure_template(_server_url, _template_name(), migrations.apply)
    return _template_name()


def _template_name() -> str:
    return f"template_{os.environ[RUN_VARIABLE]}"


def _or_fail(get: Callable[[], T]) -> T:
    """Turn missing servers into one line that says what to do."""
    try:
        return get()
    except ServicesError as error:
        pytest.fail(str(error), pytrace=False)

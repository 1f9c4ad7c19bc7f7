"""A database with two tenants, and a dashboard's login of the first."""

import secrets
from collections.abc import Callable, Iterator

import pytest

from cloud_store.base.connection import Connection, connect
from cloud_store.tenancy import database_users, registry
from tests.tenancy import two_tenants
from tests.tenancy.two_tenants import Look, Tenants


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """A superuser's connection."""
    with connect(database_url, application="test") as opened:
        yield opened


@pytest.fixture
def dashboard_login(connection: Connection) -> Iterator[Callable[[str], str]]:
    """Make a dashboard's login of a tenant; it is removed after the test."""
    made: list[str] = []

    def make(tenant: str) -> str:
        name = f"dash_{secrets.token_hex(4)}"
        database_users.create(connection, name, registry.tenant_id(connection, tenant))
        made.append(name)
        return name

    yield make
    for name in made:
        two_tenants.drop_login(connection, name)


@pytest.fixture
def tenants(connection: Connection, dashboard_login: Callable[[str], str]) -> Tenants:
    """Alpha, a look at everything, and then bravo, each with a row in every table."""
    alpha = two_tenants.build(connection, "alpha")
    connection.execute("INSERT INTO tenant (name) VALUES ('third')")
    login = dashboard_login("alpha")
    with two_tenants.session(connection, login=None, tenant="alpha"):
        api = two_tenants.walk(connection)
    with two_tenants.session(connection, login=login, tenant=None):
        dashboard = two_tenants.walk(connection)
    bravo = two_tenants.build(connection, "bravo")
    dashboard_login("bravo")
    connection.execute("ANALYZE")  # what it writes down of everybody's rows must not be readable either
    return Tenants(connection, login, Look(api, dashboard), alpha, bravo)

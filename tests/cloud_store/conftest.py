"""A connection to a migrated database with one tenant."""

from collections.abc import Iterator

import pytest

from cloud_store.base.connection import Connection, connect
from cloud_store.tenancy import registry


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """A connection to the test's database, in which the tenant `acme` exists."""
    with connect(database_url, application="test") as opened:
        registry.add_tenant(opened, "acme")
        yield opened

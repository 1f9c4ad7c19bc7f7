"""Fixtures of enrolment: brokers with certificates, a worker that signs, a tenant with a site."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cloud_store.base.connection import connect
from cloud_store.tenancy import registry
from testbed.brokers import FleetBrokers
from testbed.worker_process import Workers
from tests.enrolment.cloud import Cloud


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[FleetBrokers]:
    """The two brokers and their authority."""
    with FleetBrokers(tmp_path) as made:
        yield made


@pytest.fixture
def cloud(
    tmp_path: Path, brokers: FleetBrokers, database_url: str, worker: Workers, unique_name: Callable[..., str]
) -> Cloud:
    """A whole cloud; its worker signs for 90 days."""
    tenant = unique_name("acme")
    with closing(connect(database_url, application="test")) as connection:
        registry.add_tenant(connection, tenant)
        registry.add_site(connection, tenant, "berlin")
    made = worker("one", database_url, brokers.worker_url, **brokers.worker_settings())
    return Cloud(brokers, database_url, tenant, made, tmp_path)

"""Attacks and faults at once: what one tenant does to all others must not become worse because something breaks too.

The fault matrix (tests/end_to_end/test_fault_matrix.py) breaks an honest system; here another tenant attacks meanwhile.
"""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest

from cloud_api.app import create
from cloud_api.settings import ApiSettings
from cloud_store.base import migrations
from cloud_store.base.connection import connect
from cloud_store.merge import dead_letters
from cloud_store.reports import snapshots
from cloud_store.tenancy import database_users, registry
from testbed.services import PrivateBroker, PrivateDatabase
from testbed.worker_process import Workers
from tests.cloud_api.serving import key, served
from tests.cloud_ingest import attacks
from tests.cloud_ingest.sites import Site
from tests.tenancy.holding import hold_everything

pytestmark = [pytest.mark.slow, pytest.mark.services]
SETTLED_S = 60.0


def acked(site: Site) -> int:
    """How many frames of a site are acknowledged."""
    return sum(gateway.sender.acked_frame for gateway in site.gateways)


@pytest.mark.timeout(300)
async def test_an_honest_tenant_goes_on_under_every_attack_while_worker_and_database_are_killed(
    worker: Workers,
    site_at: Callable[[str], Site],
    private_database: Callable[..., PrivateDatabase],
    private_broker: Callable[..., PrivateBroker],
) -> None:
    """Junk frames, hostile reports and statuses, a late stocktake, a dashboard that holds every lock, endless bodies.

    Afterwards both tenants' stock is the oracle's, each entry once, and the API answers.
    """
    database, mqtt_url = private_database(), private_broker().url
    migrations.apply(database.url)
    honest, hostile = site_at(database.url), site_at(database.url)
    for _ in range(4):
        honest.add_gateway(frames=40, held=20)
    attacks.add_stocktaker(hostile)
    with closing(connect(database.url, application="test")) as connection:
        evil = f"{hostile.prefix}-evil"
        registry.add_gateway(connection, hostile.prefix, "berlin", evil)
        login = f"dash_{secrets.token_hex(4)}"
        database_users.create(connection, login, registry.tenant_id(connection, hostile.prefix))
        headers = key(connection, honest.prefix)

    with (
        served(create(ApiSettings(database_url=database.url))) as client,
        closing(psycopg.connect(database.url.replace("postgres@", f"{login}@"), autocommit=True)) as dashboard,
    ):
        await asyncio.to_thread(hold_everything, dashboard, 100)
        first = worker("first", database.url, mqtt_url, STOCKTIDE_BATCH_FRAMES_MAX="16")
        async with (
            honest.fleet(mqtt_url) as fleet,
            hostile.fleet(mqtt_url) as theirs,
            attacks.all_at_once(mqtt_url, evil),
        ):
            await fleet.until(lambda: acked(honest) >= 20, SETTLED_S)
            await theirs.until(lambda: acked(hostile) > 0, SETTLED_S)
            first.kill()
            assert await asyncio.to_thread(attacks.huge_body, client.port) in {413, 0}
            second = worker("second", database.url, mqtt_url, STOCKTIDE_BATCH_FRAMES_MAX="16")
            honest.release(fleet, 10)
            await fleet.until(lambda: acked(honest) >= 90, SETTLED_S)
            await asyncio.to_thread(database.kill)
            honest.release(fleet)
            await asyncio.to_thread(database.start)
            await fleet.settled(SETTLED_S)
            await theirs.settled(SETTLED_S)
        assert client.get("/v1/stock", headers).status == 200
    assert second.stop() == 0
    for site in (honest, hostile):
        require_agreement(site)
    with closing(connect(database.url, application="test")) as connection:
        letters = dead_letters.newest(connection, limit=100)
    assert {row["gateway"] for row in letters} == {evil}, "the attacks came through, and nobody else lost a frame"


def require_agreement(site: Site) -> None:
    """The stock is the oracle's. Counts of a stocktake and of the others may meet at one clock reading: no matter."""
    site.require_agreement()
    with closing(connect(site.database_url, application="test")) as connection:
        assert snapshots.imbalance(connection) == {}

"""A noisy tenant beside a quiet one, on real servers. Broken when a quota loses entries or holds others up.

How long the others wait is measured by `make bench ARGS=tenants`; here is only what must be so on any machine.
"""

from collections.abc import Callable
from contextlib import closing

import pytest

from cloud_store.base.connection import connect
from cloud_store.tenancy import quotas, registry
from testbed.gateways import Fleet, LoadGateway
from testbed.worker_process import Workers
from tests.cloud_ingest.sites import Site
from wire_protocol.replication import SenderLimits

pytestmark = [pytest.mark.slow, pytest.mark.services]
SETTLED_S = 90.0


def limit(site: Site, entries_per_s: int) -> None:
    """Give the tenant of a site an ingest quota."""
    with closing(connect(site.database_url, application="test")) as connection:
        tenant_id = registry.tenant_id(connection, site.prefix)
        quotas.change(connection, tenant_id, site.prefix, {"entries_per_s_max": entries_per_s})


def windows_told(gateway: LoadGateway) -> set[int]:
    """The windows that a gateway was told."""
    return {ack.window for ack in gateway.acks}


async def test_a_noisy_tenant_waits_and_the_others_do_not(
    worker: Workers,
    site_at: Callable[[str], Site],
    database_url: str,
    mqtt_url: str,
) -> None:
    """Its gateways are told windows of zero and let on in turn; every entry of both arrives once."""
    noisy, quiet = site_at(database_url), site_at(database_url)
    limit(noisy, 10)  # so few that even a slow machine serves the quiet tenant first
    noisy.add_gateway(frames=400, limits=SenderLimits())
    worker("one", database_url, mqtt_url)
    async with noisy.fleet(mqtt_url) as first:
        # A worker learns of a quota with its next look at the purses: until then windows are as wide as anybody's. So
        # one gateway empties the purse, and what is said of windows is said of those that come after it.
        await first.until(lambda: any(ack.window == 0 for ack in noisy.gateways[0].acks), SETTLED_S)
        for _ in range(3):
            noisy.add_gateway(frames=20, limits=SenderLimits())
        later = noisy.gateways[1:]
        async with Fleet(mqtt_url, later) as shouting:
            await shouting.until(lambda: all(0 in windows_told(each) for each in later), SETTLED_S)
            for _ in range(2):
                quiet.add_gateway(frames=10)
            async with quiet.fleet(mqtt_url) as calm:
                await calm.settled(SETTLED_S)
            assert shouting.frames_acked < 60, "the quiet tenant waited for the noisy one"
            limit(noisy, 5_000)
            await shouting.settled(SETTLED_S)
        await first.settled(SETTLED_S)
    assert all(0 not in windows_told(gateway) for gateway in quiet.gateways)
    assert all({0, 1} <= windows_told(gateway) for gateway in noisy.gateways)
    noisy.require_agreement()
    quiet.require_agreement()

"""A noisy tenant beside a quiet one, on real servers. Broken when a quota loses entries or holds others up.

How long the others wait is measured by `make bench ARGS=tenants`; here is only what must be so on any machine.
"""

from collections.abc import Callable
from contextlib import closing

import pytest

from cloud_store import quotas, registry
from cloud_store.connection import connect
from tests.cloud_ingest.conftest import Site, Workers, site_at, worker
from wire_protocol.replication import SenderLimits

pytestmark = [pytest.mark.slow, pytest.mark.services]
__all__ = ["site_at", "worker"]
SETTLED_S = 90.0


async def test_a_noisy_tenant_waits_and_the_others_do_not(
    worker: Workers,
    site_at: Callable[[str], Site],
    database_url: str,
    mqtt_url: str,
) -> None:
    """Its gateways are told windows of zero and let on in turn; every entry of both arrives once."""
    noisy, quiet = site_at(database_url), site_at(database_url)
    with closing(connect(database_url, application="test")) as connection:
        tenant_id = registry.tenant_id(connection, noisy.prefix)
        quotas.change(connection, tenant_id, noisy.prefix, {"entries_per_s_max": 300})
    for _ in range(4):
        noisy.add_gateway(frames=20, limits=SenderLimits())
    worker("one", database_url, mqtt_url)
    async with noisy.fleet(mqtt_url) as shouting:
        await shouting.until(lambda: any(ack.window == 0 for each in noisy.gateways for ack in each.acks), SETTLED_S)
        for _ in range(2):
            quiet.add_gateway(frames=10)
        async with quiet.fleet(mqtt_url) as calm:
            await calm.settled(SETTLED_S)
        assert shouting.frames_acked < noisy.frames, "the quiet tenant waited for the noisy one"
        await shouting.settled(SETTLED_S)
    assert all(ack.window > 0 for gateway in quiet.gateways for ack in gateway.acks)
    # One whose frames were all in the first batch may have been answered before the quota was used up.
    told = {gateway.name: {ack.window for ack in gateway.acks} for gateway in noisy.gateways}
    assert sum({0, 1} <= windows for windows in told.values()) >= len(told) - 1, told
    noisy.require_agreement()
    quiet.require_agreement()

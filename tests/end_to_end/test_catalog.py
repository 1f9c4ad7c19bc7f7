"""The catalogue on real servers and processes: all of it, through a cut, and then what changes."""

import json
from contextlib import closing

import pytest
from typer.testing import CliRunner

from cloud_store.tenancy import registry
from edge_agent.cli.app import app as edge
from edge_agent.ledger import database
from edge_agent.provisioning import catalog
from testbed.eventually import eventually
from tests.end_to_end.sites import SETTLE_S, Post, SiteStack
from wire_protocol.catalog import CatalogItem

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
ITEMS = 20_000


def known(post: Post) -> int:
    """How many items the gateway knows."""
    with closing(database.open_reader(post.agent.ledger)) as reader:
        return catalog.size(reader)[0]


def state(site: SiteStack, post: Post) -> str | None:
    """Whether the cloud takes the gateway for online: only then is it notified."""
    row = site.cloud.execute(
        "SELECT s.state FROM gateway_status s JOIN gateway g USING (gateway_id) WHERE g.name = %s", [post.name]
    ).fetchone()
    return None if row is None else str(row[0])


def test_a_catalogue_goes_on_after_a_cut_and_a_change_arrives_at_once(site: SiteStack) -> None:
    """An agent that is killed while it reads goes on where it was; a technician sees the new name offline."""
    post = site.make()
    registry.add_items(site.cloud, site.tenant, [CatalogItem(sku=f"SKU-{n:05}") for n in range(ITEMS)])
    eventually(lambda: known(post) > 0, within_s=SETTLE_S)
    post.agent.kill()
    before = known(post)
    assert 0 < before < ITEMS, "the cut came too late to prove anything"
    site.worker.kill()
    site.worker.start()
    post.agent.start()
    eventually(lambda: known(post) == ITEMS, within_s=SETTLE_S, explain=lambda: f"{known(post)} items")
    # From here on it asks on contact only, so that what changes after the contact is not found by a look now and then.
    post.agent.stop()
    eventually(lambda: state(site, post) == "offline", within_s=SETTLE_S)
    post.agent.environment["STOCKTIDE_EDGE_SITE_ASK_INTERVAL_S"] = "3600"
    post.agent.start("uplink_up")
    eventually(lambda: state(site, post) == "online", within_s=SETTLE_S)
    registry.add_items(site.cloud, site.tenant, [CatalogItem(sku="SKU-contact")])
    eventually(lambda: known(post) == ITEMS + 1, within_s=SETTLE_S)
    registry.add_items(site.cloud, site.tenant, [CatalogItem(sku="SKU-00042", name="Answer")], replace=True)

    def shown() -> bool:
        told = CliRunner().invoke(edge, ["item", "SKU-00042", "--json", "--ledger", str(post.agent.ledger)])
        return [each["name"] for each in json.loads(told.output)] == ["Answer"]

    eventually(shown, within_s=SETTLE_S)

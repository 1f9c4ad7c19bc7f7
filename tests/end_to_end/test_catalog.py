"""The catalogue on real servers and processes: all of it, through a cut, and then what changes."""

import json
import time
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
    registry.add_items(site.cloud, site.tenant, [CatalogItem(sku="SKU-00042", name="Answer")], replace=True)
    began = time.monotonic()

    def shown() -> bool:
        told = CliRunner().invoke(edge, ["item", "SKU-00042", "--json", "--ledger", str(post.agent.ledger)])
        return [each["name"] for each in json.loads(told.output)] == ["Answer"]

    eventually(shown, within_s=SETTLE_S)
    assert time.monotonic() - began < 10, "it was found by the look now and then"

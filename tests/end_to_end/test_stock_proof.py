"""Stock proof: a balance that was changed behind the system's back is found, named and mended, on either side."""

import json
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from typer.testing import CliRunner

from cloud_cli.app import app as cloud
from cloud_store.merge import alarms
from edge_agent.cli.app import app as edge
from testbed.eventually import eventually
from tests.end_to_end.sites import SETTLE_S, SiteStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes between two looks are a second here."""
    for name in ("EDGE_STATUS_INTERVAL_S", "EDGE_STOCK_SCAN_INTERVAL_S", "PROOF_SCAN_S"):
        monkeypatch.setenv(f"STOCKTIDE_{name}", "1")


def open_alarms(stack: SiteStack) -> list[tuple[str, str, str]]:
    """Gateway, kind and detail of what is wrong."""
    rows = alarms.listing(stack.cloud, limit=10, tenant=stack.tenant)
    return [(row["gateway"], row["kind"], row["detail"]) for row in rows]


def proved(stack: SiteStack) -> int:
    """How many gateways of the site were found to have the cloud's stock."""
    row: Any = stack.cloud.execute(
        "SELECT count(*) FROM gateway_status JOIN gateway g USING (gateway_id) JOIN tenant t USING (tenant_id) "
        "WHERE t.name = %s AND stock_proved_at > now() - interval '5 seconds' AND NOT stock_differs",
        [stack.tenant],
    ).fetchone()
    return int(row[0])


def fill(stack: SiteStack) -> None:
    """Two gateways with some stock, all of it in the cloud and proved."""
    for _ in range(2):
        stack.make()
    for post in stack.posts:
        post.scan(60)
    stack.require_agreement()
    eventually(lambda: proved(stack) == 2, within_s=SETTLE_S, explain=lambda: str(open_alarms(stack)))
    assert open_alarms(stack) == []


def test_a_balance_changed_at_the_edge_is_named_and_mended(site: SiteStack) -> None:
    """A disk that lies, or somebody with a database tool: the cloud says which cell, the technician rebuilds it."""
    fill(site)
    bad, good = site.posts
    with closing(sqlite3.connect(bad.agent.ledger, timeout=10)) as raw, raw:
        raw.execute("UPDATE balance SET on_hand = on_hand + 1000 WHERE location = 'A-01' AND sku = 'SKU-3'")
    eventually(lambda: len(open_alarms(site)) == 1, within_s=SETTLE_S)
    gateway, kind, detail = open_alarms(site)[0]
    assert (gateway, kind) == (bad.name, "stock-differs")
    assert detail.startswith("SKU-3 at A-01: cloud ")
    assert "SKU-2" not in detail
    assert bad.times("stock_damaged") >= 1
    ledger = ["--ledger", str(bad.agent.ledger)]
    assert CliRunner().invoke(edge, ["ledger", "verify", *ledger]).exit_code == 1
    assert CliRunner().invoke(edge, ["ledger", "rebuild", *ledger]).exit_code == 0
    eventually(lambda: open_alarms(site) == [], within_s=SETTLE_S)
    site.require_agreement()
    assert good.times("stock_damaged") == 0


def test_a_balance_changed_in_the_cloud_is_named_and_mended(site: SiteStack) -> None:
    """The cloud is not always right: its own entries decide, and both gateways are witnesses."""
    fill(site)
    site.cloud.execute(
        "UPDATE balance b SET on_hand = b.on_hand - 7 FROM location l, item i, site s, tenant t "
        "WHERE l.location_id = b.location_id AND i.item_id = b.item_id AND s.site_id = l.site_id "
        "AND t.tenant_id = s.tenant_id AND t.name = %s AND l.name = 'A-01' AND i.sku = 'SKU-5'",
        [site.tenant],
    )
    eventually(lambda: len(open_alarms(site)) == 2, within_s=SETTLE_S)
    assert {kind for _, kind, _ in open_alarms(site)} == {"stock-differs"}
    assert all(detail.startswith("SKU-5 at A-01: cloud ") for *_, detail in open_alarms(site))
    options = ["--tenant", site.tenant, "--database-url", site.database_url, "--json"]
    found = CliRunner().invoke(cloud, ["ledger", "verify", *options])
    assert (found.exit_code, json.loads(found.stdout)[0]["balances_off"]) == (1, 1)
    mended = CliRunner().invoke(cloud, ["ledger", "rebuild", *options])
    assert mended.exit_code == 0
    assert json.loads(CliRunner().invoke(cloud, ["ledger", "verify", *options]).stdout)[0]["findings"] == []
    eventually(lambda: open_alarms(site) == [], within_s=SETTLE_S, explain=lambda: str(open_alarms(site)))
    site.require_agreement()

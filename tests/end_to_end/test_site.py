"""Gateways of one site, and gateways that lose their past: real agents, brokers, workers and TimescaleDB.

Broken when a restored backup, a cloned disk or a replaced gateway loses a scan or counts one twice, or when after
contact the gateways of a site and the cloud do not all show the stock that the definition gives.
"""

import json
import subprocess
from contextlib import closing

import pytest
from typer.testing import CliRunner

from cloud_store.merge import alarms
from edge_agent.cli.app import app as edge
from edge_agent.desk.booking import book
from edge_agent.ledger import audit, database, queries
from testbed import warm_process
from testbed.eventually import eventually
from tests.end_to_end.sites import SETTLE_S, SiteStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_gateways_of_a_site_show_the_same_stock_as_the_cloud(site: SiteStack) -> None:
    """Each works on what it knows while it is offline; after contact all know everything."""
    first, second = site.make(), site.make()
    for post in site.posts:
        post.scan(40)
    site.require_agreement()
    second.agent.kill()
    first.scan(30)
    book(second.agent.ledger, "count", "SKU-1", 5, location="A-01")
    book(second.agent.ledger, "pick", "SKU-2", 1, source="A-01")
    eventually(first.settled, within_s=SETTLE_S)
    assert first.balances() != second.balances()
    second.agent.start()
    site.require_agreement(technician=2)
    shown = CliRunner().invoke(
        edge, ["history", "SKU-2", "--limit", "100", "--json", "--ledger", str(first.agent.ledger)]
    )
    rows = json.loads(shown.output)
    assert {row["gateway"] for row in rows} == {first.name, second.name}
    assert [(row["gateway"], row["in_cloud"]) for row in rows if row["kind"] == "pick"] == [(second.name, True)]


def test_a_restored_backup_fetches_what_it_lacks_and_goes_on_in_a_new_epoch(site: SiteStack) -> None:
    """Yesterday's backup over today's disk: what was shipped since comes back, what is scanned from now on counts."""
    restored, other = site.make(), site.make()
    restored.scan(30)
    site.require_agreement()
    backup = restored.snapshot(site.folder / "backup" / "ledger.db")
    restored.scan(25)
    other.scan(5)
    site.require_agreement()
    restored.agent.kill()
    restored.restore_version(backup)
    for _ in range(12):  # as many frames as the cloud has, of another history
        book(restored.agent.ledger, "pick", "SKU-3", 1, source="A-01")
    restored.agent.start()
    restored.scan(20)
    site.require_agreement(technician=12)
    assert restored.times("epoch_opened") == 1
    kinds = {(alarm["gateway"], alarm["kind"]) for alarm in alarms.listing(site.cloud, limit=10, tenant=site.tenant)}
    # The gateway may have said of itself, too, that the cloud did not take its frames for a moment.
    assert kinds - {(restored.name, "gateway-problem")} == {(restored.name, "fork")}
    restored.scan(5)
    site.require_agreement(technician=12)


def test_a_cloned_disk_in_a_second_live_gateway_counts_beside_the_first(site: SiteStack) -> None:
    """Two machines under one name: neither may be lost, neither counted twice, and somebody must be told."""
    first = site.make()
    first.scan(20)
    site.require_agreement()
    copy = first.snapshot(site.folder / "clone" / "ledger.db")
    clone = site.make(first.name, ledger=copy, device="till-2")
    for _ in range(3):
        first.scan(15)
        clone.scan(10)
        eventually(lambda: first.settled() and clone.settled(), within_s=SETTLE_S, explain=site.difference)
    site.require_agreement()
    assert first.times("epoch_opened") + clone.times("epoch_opened") >= 1
    kinds = {alarm["kind"] for alarm in alarms.listing(site.cloud, limit=10, tenant=site.tenant)}
    assert kinds - {"gateway-problem"} == {"fork"}


def test_a_replacement_with_an_empty_ledger_fetches_the_past_by_itself(site: SiteStack) -> None:
    """A technician who forgot to restore must not do harm, nor one who plugs the old disk in again."""
    old, other = site.make(), site.make()
    old.scan(20)
    other.scan(3)
    site.require_agreement()
    old.agent.kill()
    new = site.make(old.name, device="till-2")
    new.scan(15)
    site.posts.remove(old)
    lost = old.sent
    other.sent += lost  # counted where the totals are compared
    other.scanner.committed |= {f"old-{number}" for number in range(lost)}
    site.require_agreement()
    assert new.times("epoch_opened") <= 1, "the first frame may have waited for the answer"
    other.sent -= lost
    site.posts.append(old)
    old.agent.start()
    old.scan(7)
    site.require_agreement()


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """`stocktide edge …` in a process of its own."""
    return warm_process.run("edge", *arguments, timeout=120)


def test_a_dead_gateway_is_restored_from_the_cloud_over_mqtt(site: SiteStack) -> None:
    """A new machine, one command: the stock, the history and the devices are there before the agent runs."""
    dead, other = site.make(), site.make()
    dead.scan(300)
    other.scan(20)
    site.require_agreement()
    dead.agent.kill()
    path = site.folder / "new" / "ledger.db"
    asked = ["restore", "--gateway", dead.name, "--cloud", site.broker.url, "--ledger", str(path), "--json"]
    done = command(*asked)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["entries"], told["logs"], told["devices"]) == (320, 2, ["till-1"])
    with closing(database.open_reader(path)) as reader:
        assert queries.balances(reader) == other.balances()
        assert audit.verify(reader).findings == []
    site.posts.remove(dead)
    other.sent += dead.sent  # counted where the totals are compared
    other.scanner.committed |= {f"dead-{number}" for number in range(dead.sent)}
    new = site.make(dead.name, ledger=path, device="till-2")
    new.scan(10)
    site.require_agreement()
    assert new.times("ledger_forked") == 0
    again = command(*asked)
    assert again.returncode != 0
    assert "exists already" in again.stderr


def test_a_restore_that_hears_nothing_says_so(site: SiteStack) -> None:
    """A wrong address or an unregistered name must not look like a gateway without a past."""
    path = site.folder / "new" / "ledger.db"
    asked = ["restore", "--gateway", "gw-nobody", "--cloud", site.broker.url, "--ledger", str(path), "--wait", "2"]
    for _ in range(2):  # the second goes on with the unfinished one
        done = command(*asked)
        assert done.returncode != 0
        assert "gateway list" in done.stderr
    other = command(*asked[:2], "gw-other", *asked[3:])
    assert other.returncode != 0
    assert "unfinished restore of gw-nobody" in other.stderr

"""Commands on real servers and processes: from the operator to the gateway and its devices, and back."""

import asyncio
import json
from contextlib import closing
from typing import Any

import pytest
from typer.testing import CliRunner

from cloud_cli.app import app as cloud
from cloud_store.merge import alarms
from cloud_store.provisioning import commands
from edge_agent.ledger import database
from edge_agent.provisioning import recounts
from testbed.eventually import eventually
from tests.end_to_end.devices import device
from tests.end_to_end.sites import SETTLE_S, Post, SiteStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def send(stack: SiteStack, post: Post, name: str, *arguments: str) -> Any:
    """Run `stocktide cloud command send`, and wait for the reply."""
    options = ["--database-url", stack.database_url, "--expires", "30"]
    return CliRunner().invoke(cloud, ["command", "send", post.name, name, *arguments, *options])


def test_an_operator_asks_and_is_answered(site: SiteStack) -> None:
    """What is asked for happens at the gateway, and what cannot be done says why."""
    post = site.make()
    post.scan(3)
    site.require_agreement()
    done = send(site, post, "recount", "location=A-01", "note=after the flood")
    assert (done.exit_code, "has done it" in done.output) == (0, True), done.output
    with closing(database.open_reader(post.agent.ledger)) as reader:
        assert {row["note"] for row in recounts.waiting(reader)} == {"after the flood"}
    told = send(site, post, "collect-diagnostics", "--json")
    assert json.loads(told.output)["result"]["status"]["gateway"] == post.name
    failed = send(site, post, "locate", "device=nobody")
    assert (failed.exit_code, "not registered" in failed.output) == (1, True), failed.output
    assert send(site, post, "sync-now").exit_code == 0


def test_a_command_waits_for_a_gateway_that_is_away_and_expires(site: SiteStack) -> None:
    """It is done when the gateway comes back, unless it is too late by then."""
    post = site.make()
    eventually(lambda: post.times("uplink_up") == 1)
    post.agent.stop()
    kept = commands.give(site.cloud, post.name, "sync-now", {}, expires_s=600, who="test")
    late = commands.give(site.cloud, post.name, "recount", {"location": "A-01"}, expires_s=1, who="test")
    eventually(lambda: commands.show(site.cloud, late)["state"] == "expired")
    post.agent.start()
    eventually(lambda: commands.show(site.cloud, kept)["state"] == "done", within_s=SETTLE_S)
    assert commands.show(site.cloud, late)["state"] == "expired"
    with closing(database.open_reader(post.agent.ledger)) as reader:
        assert reader.execute("SELECT count(*) FROM recount").fetchone() == (0,)


def test_a_new_epoch_on_demand_loses_and_doubles_nothing(site: SiteStack) -> None:
    """The ledger goes on in a new epoch with everything it had."""
    post = site.make()
    post.scan(40)
    site.require_agreement()
    with closing(database.open_reader(post.agent.ledger)) as reader:
        before = database.meta(reader)["epoch"]
    assert send(site, post, "open-epoch", "reason=a disk was swapped").exit_code == 0
    eventually(lambda: post.times("epoch_opened") == 1, within_s=SETTLE_S)
    post.scan(10)
    site.require_agreement()
    with closing(database.open_reader(post.agent.ledger)) as reader:
        assert database.meta(reader)["epoch"] != before
    # "A backup was restored, a disk was cloned" is no news to the operator who asked for it.
    assert [row for row in alarms.listing(site.cloud, limit=100) if row["gateway"] == post.name] == []


async def test_a_device_shows_where_it_is(site: SiteStack) -> None:
    """The technician hears it."""
    post = site.make()
    async with device(post, "till-1") as firmware:
        done = await asyncio.to_thread(send, site, post, "locate", "device=till-1", "seconds=5")
        assert done.exit_code == 0, done.output
        await asyncio.to_thread(eventually, lambda: firmware.blinks_until_ms > 0)

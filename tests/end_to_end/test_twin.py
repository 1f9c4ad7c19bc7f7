"""Twins on real servers and processes: from the operator's command to the device's answer and back."""

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from cloud_cli.app import app as cloud
from cloud_store.provisioning import jobs, twins
from testbed.eventually import eventually
from tests.end_to_end.devices import device
from tests.end_to_end.sites import SETTLE_S, SiteStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def command(stack: SiteStack, *arguments: str) -> Any:
    """Run `stocktide cloud twin` and return what it did."""
    return CliRunner().invoke(cloud, ["twin", *arguments, "--database-url", stack.database_url])


def reported(stack: SiteStack, gateway: str) -> dict[str, Any]:
    """What the cloud knows of a gateway's twin."""
    return twins.show(stack.cloud, gateway)


async def until(stack: SiteStack, gateway: str, **wanted: object) -> None:
    """Wait until the cloud was told so."""

    def agrees() -> bool:
        said = reported(stack, gateway)["reported"] or {}
        return all((said.get(name) or None) == (value or None) for name, value in wanted.items())

    await asyncio.to_thread(
        eventually, agrees, within_s=SETTLE_S, explain=lambda: str(reported(stack, gateway)["reported"])
    )


async def test_a_change_reaches_the_device_and_comes_back(site: SiteStack) -> None:
    """One command: the device appears, is configured, obeys and confirms; the difference is told until then."""
    post = site.make()
    async with device(post, "probe-1", sampling_s_min=5) as firmware:
        made = command(
            site, "set", post.name, "--patch", '{"devices": {"probe-1": {"kind": "probe", "sampling_s": 60}}}'
        )
        assert made.exit_code == 0, made.output
        await until(site, post.name, version=1, confirmed={"probe-1": 1}, errors={})
        assert firmware.config is not None
        assert firmware.config.sampling_s == 60
        assert command(site, "diff", post.name).exit_code == 0
        # What the device cannot do comes back with its words, and the old configuration stays in force.
        command(site, "set", post.name, "--patch", '{"devices": {"probe-1": {"sampling_s": 1}}}')
        await until(site, post.name, version=2, errors={"probe-1": "samples no faster than every 5 s"})
        assert firmware.config.sampling_s == 60
        differs = command(site, "diff", post.name)
        assert (differs.exit_code, "no faster than every 5 s" in differs.output) == (1, True)


async def test_whoever_was_away_converges_on_contact(site: SiteStack) -> None:
    """A gateway that is off and a broker that has forgotten everything: what is wanted gets there all the same."""
    post = site.make()
    await until(site, post.name, version=0)
    post.agent.stop()
    for sampling_s in (60, 30, 20):
        patch = f'{{"devices": {{"probe-1": {{"kind": "probe", "sampling_s": {sampling_s}}}}}}}'
        assert command(site, "set", "--tenant", site.tenant, "--patch", patch).exit_code == 0
    site.broker.kill()
    site.broker.start()
    post.agent.start()
    await until(site, post.name, version=3)
    post.broker.kill()
    post.broker.start()
    async with device(post, "probe-1") as firmware:
        await until(site, post.name, version=3, confirmed={"probe-1": 3})
        assert firmware.config is not None
        assert firmware.config.sampling_s == 20


async def test_a_stopped_worker_changes_nothing_for_long(site: SiteStack) -> None:
    """A change that is made while no worker runs is pushed by the next one."""
    post = site.make()
    await until(site, post.name, version=0)
    site.worker.kill()
    command(site, "set", post.name, "--patch", '{"limits": {"readings": 5000}}')
    site.worker.start()
    await until(site, post.name, version=1)


async def test_a_job_goes_through_a_site_and_comes_back(site: SiteStack) -> None:
    """A bad change stops at the first gateway, and that one is as before."""
    posts = [site.make() for _ in range(2)]
    for post in posts:
        await until(site, post.name, version=0)
    done = CliRunner().invoke(
        cloud,
        [
            "job",
            "create",
            "--tenant",
            site.tenant,
            "--patch",
            '{"limits": {"readings": 5000}}',
            "--waves",
            "1,100%",
            "--database-url",
            site.database_url,
        ],
    )
    assert done.exit_code == 0, done.output
    for post in posts:
        await until(site, post.name, version=1)
    async with device(posts[0], "probe-1", sampling_s_min=5), device(posts[1], "probe-1", sampling_s_min=5):
        bad = CliRunner().invoke(
            cloud,
            [
                "job",
                "create",
                *(post.name for post in posts),
                "--waves",
                "1,100%",
                "--rollback",
                "--json",
                "--patch",
                '{"devices": {"probe-1": {"kind": "probe", "sampling_s": 1}}}',
                "--database-url",
                site.database_url,
            ],
        )
        job = json.loads(bad.output)["job"]
        await asyncio.to_thread(
            eventually,
            lambda: jobs.listing(site.cloud, limit=1, job=job)[0]["state"] == "failed",
            within_s=SETTLE_S,
            explain=lambda: str(jobs.listing(site.cloud, limit=1, job=job)),
        )
    [first, second] = jobs.targets(site.cloud, job, limit=9)
    assert (first["state"], second["state"]) == ("rolled-back", "waiting")
    assert "a device cannot" in first["reason"]
    assert twins.show(site.cloud, second["gateway"])["version"] == 1
    await until(site, first["gateway"], version=3)

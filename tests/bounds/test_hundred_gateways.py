"""A hundred gateways come back at once, each with a day's backlog, to one worker with a small inbox."""

import asyncio
import urllib.request
from collections.abc import Callable
from contextlib import suppress

import pytest

from testbed.services.server import free_port
from testbed.worker_process import Workers
from tests.cloud_ingest.sites import Site

GATEWAYS = 100
FRAMES = 24  # a frame an hour, of 40 entries
INBOX_FRAMES_MAX = 64
SETTLED_S = 90.0


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.bound("cloud.inbox_frames_max")
@pytest.mark.bound("cloud.inbox_frames_target")
async def test_a_hundred_gateways_with_a_days_backlog_come_back_at_once(
    worker: Workers,
    site_at: Callable[[str], Site],
    database_url: str,
    mqtt_url: str,
) -> None:
    """The morning after the broker's outage: the inbox never exceeds its bound, windows shrink, each entry counts once.

    What found no room was not acknowledged and is sent again, so the bound costs time and nothing else.
    """
    site, port = site_at(database_url), free_port()
    for _ in range(GATEWAYS):
        site.add_gateway(frames=FRAMES)
    fills: list[float] = []
    async with site.fleet(mqtt_url) as fleet:
        await fleet.announced.wait()
        worker(
            "one",
            database_url,
            mqtt_url,
            STOCKTIDE_INBOX_FRAMES_MAX=str(INBOX_FRAMES_MAX),
            STOCKTIDE_INBOX_FRAMES_TARGET="32",
            STOCKTIDE_BATCH_FRAMES_MAX="16",
            STOCKTIDE_METRICS_PORT=str(port),
        )
        watching = asyncio.create_task(watch(port, fills), name="watch")
        await fleet.settled(SETTLED_S)
        watching.cancel()
        metrics = await asyncio.to_thread(read, port)
    site.require_agreement()
    assert max([*fills, metrics["stocktide_inbox_fill_ratio"]]) <= 1.0
    assert metrics['stocktide_frames_total{verdict="no_room"}'] > 0, "the bound was not reached"
    windows = {ack.window for gateway in site.gateways for ack in gateway.acks}
    assert min(windows) == 1
    assert max(windows) > 1


async def watch(port: int, fills: list[float]) -> None:
    """Note how full the inbox was before each merge, as often as can be asked."""
    while True:
        with suppress(OSError):  # not up yet
            fills.append((await asyncio.to_thread(read, port))["stocktide_inbox_fill_ratio"])
        await asyncio.sleep(0.05)  # nothing is waited for: a sample more or less decides nothing


def read(port: int) -> dict[str, float]:
    """The worker's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

"""What one gateway says must not keep the others from being told: reports and replies that no database takes."""

import asyncio
from collections.abc import Callable
from contextlib import closing

import pytest

from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.services import commands as worker_commands
from cloud_ingest.services.commands import Commands
from cloud_ingest.services.twins import Twins
from cloud_ingest.settings import IngestSettings
from cloud_ingest.token_bucket import Allowance
from cloud_store.base.connection import connect
from cloud_store.provisioning import commands, twins
from cloud_store.provisioning.commands import CommandStore
from cloud_store.provisioning.twins import Selection, TwinStore
from cloud_store.tenancy import registry
from testbed.eventually import eventually_async
from testbed.hand_clock import HandClock
from wire_protocol import topics

pytestmark = pytest.mark.services
ANSWERS = 2  # at once
SHARDS = frozenset(range(topics.SHARDS))
REPORTS = [
    b'{"v":1,"version":0,"errors":{"d":"\\u0000"}}',
    b'{"v":1,"version":0,"errors":{"d":"\\ud800"}}',
    b'{"v":1,"version":0,"firmware":{"m":{"release":1,"version":"1","devices":1,"failed":{"d":"\\u0000"}}}}',
]
REPLIES = [
    b'{"v":1,"id":"x","ok":false,"reason":"\\u0000"}',
    b'{"v":1,"id":"x","ok":true,"result":{"a":"\\u0000"}}',
    b'{"v":1,"id":"x","ok":true,"result":{"a":NaN}}',
    b'{"v":1,"id":"x","ok":true,"result":{"a\\u0000":1e999}}',
]


@pytest.fixture
def pair(database_url: str, unique_name: Callable[..., str]) -> tuple[str, str]:
    """An evil gateway and a good one, of different tenants."""
    made = []
    with closing(connect(database_url, application="test")) as connection:
        for _ in range(2):
            tenant, gateway = unique_name("acme"), unique_name("gw")
            registry.add_tenant(connection, tenant)
            registry.add_site(connection, tenant, "berlin")
            registry.add_gateway(connection, tenant, "berlin", gateway)
            made.append(gateway)
    return made[0], made[1]


@pytest.mark.parametrize("report", REPORTS)
async def test_a_report_that_no_database_takes_keeps_nobody_waiting(
    database_url: str, pair: tuple[str, str], report: bytes
) -> None:
    """One device's reason with a NUL would have stopped the twins of every tenant, for ever."""
    evil, good = pair
    with closing(connect(database_url, application="test")) as connection:
        list(twins.change(connection, Selection((good,)), {"limits": {"readings": 5_000}}, who="kim"))
    told: list[str] = []
    with closing(TwinStore(database_url)) as store:
        made = Twins(IngestSettings(), store, lambda topic, *_, **__: told.append(topic), WorkerMetrics())
        made.reported(evil, report)
        made.serve(SHARDS)
        running = asyncio.create_task(made.run())
        await eventually_async(lambda: topics.link(good, topics.Channel.DESIRED_TWIN) in told and not made._reports)
        running.cancel()
        await asyncio.wait([running])


async def test_a_gateway_that_reports_without_end_keeps_nobody_waiting(
    database_url: str, pair: tuple[str, str]
) -> None:
    """It is answered as often as it is allowed, and the others are pushed theirs all the same."""
    evil, good = pair
    with closing(connect(database_url, application="test")) as connection:
        list(twins.change(connection, Selection((evil, good)), {"limits": {"readings": 5_000}}, who="kim"))
    told: list[str] = []
    to_evil = topics.link(evil, topics.Channel.DESIRED_TWIN)
    with closing(TwinStore(database_url)) as store:
        made = Twins(
            IngestSettings(twins_per_s_max=10 * ANSWERS), store,
            lambda topic, *_, **__: told.append(topic), WorkerMetrics(),
        )  # fmt: skip
        made._answers = Allowance(10 * ANSWERS, HandClock().mono_ms)  # a clock that stands still
        running = asyncio.create_task(made.run())

        async def shout() -> None:
            while True:
                made.reported(evil, b'{"v":1,"version":0}')
                await asyncio.sleep(0)  # the others have their turn

        shouting = asyncio.create_task(shout())
        await eventually_async(lambda: told.count(to_evil) == ANSWERS)
        made.serve(SHARDS)
        await eventually_async(lambda: topics.link(good, topics.Channel.DESIRED_TWIN) in told)
        for task in (shouting, running):
            task.cancel()
        await asyncio.wait([shouting, running])
    assert told.count(to_evil) <= ANSWERS + 1  # one is the push that it is due, as everybody


@pytest.mark.parametrize("payload", REPLIES)
async def test_a_reply_that_no_database_takes_keeps_nobody_waiting(
    database_url: str, pair: tuple[str, str], payload: bytes
) -> None:
    """The same for commands; a probe's NaN needs no malice."""
    evil, good = pair
    with closing(connect(database_url, application="test")) as connection:
        commands.give(connection, good, "sync-now", {}, expires_s=60, who="kim")
    told: list[str] = []
    with closing(CommandStore(database_url)) as store:
        made = Commands(IngestSettings(), store, lambda topic, _payload: told.append(topic))
        reply = worker_commands.decode(evil, payload)
        if reply is not None:
            made.replied(evil, reply)
        made.serve(SHARDS)
        running = asyncio.create_task(made.run())
        await eventually_async(lambda: topics.link(good, topics.Channel.COMMAND) in told and not made._replies)
        running.cancel()
        await asyncio.wait([running])

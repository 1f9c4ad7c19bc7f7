"""What one gateway says must not keep the others from being told: reports and replies that no database takes."""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import closing

import pytest

from cloud_ingest.inbound import Inbound
from cloud_ingest.services.commands import Commands
from cloud_ingest.services.twins import Twins
from cloud_store.base.connection import connect
from cloud_store.provisioning import commands, twins
from cloud_store.provisioning.twins import Selection
from cloud_store.tenancy import registry
from testbed.eventually import eventually_async
from testbed.store import Failed, Session, context, running
from wire_protocol import topics
from wire_protocol.messages import InvalidMessage, Reply
from wire_protocol.topics import Channel
from wire_protocol.twin import ReportedTwin

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


class Told(list[str]):
    """The topics that a worker publishes on."""

    def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """As the worker's link."""
        del payload, qos, retain
        self.append(topic)


def reported(gateway: str, payload: bytes) -> Inbound:
    """A report as it comes in."""
    topic = topics.link(gateway, Channel.REPORTED_TWIN)
    return Inbound(gateway, Channel.REPORTED_TWIN, topic, payload, 0)


@pytest.mark.parametrize("report", REPORTS)
async def test_a_report_that_no_database_takes_keeps_nobody_waiting(
    database_url: str, pair: tuple[str, str], report: bytes
) -> None:
    """One device's reason with a NUL would have stopped the twins of every tenant, forever."""
    evil, good = pair
    with closing(connect(database_url, application="test")) as connection:
        list(twins.change(connection, Selection((good,)), {"limits": {"readings": 5_000}}, who="kim"))
    told = Told()
    with Session(database_url) as session:
        made = Twins(context(session.database, told.publish))
        made.reported(reported(evil, report))
        made.serve(SHARDS)
        async with running(made.loops()):
            await eventually_async(lambda: topics.link(good, Channel.DESIRED_TWIN) in told and not made._reports)


async def test_a_gateway_that_reports_without_end_keeps_nobody_waiting(
    database_url: str, pair: tuple[str, str]
) -> None:
    """It is answered as often as it is allowed, and the others are pushed theirs all the same."""
    evil, good = pair
    with closing(connect(database_url, application="test")) as connection:
        list(twins.change(connection, Selection((evil, good)), {"limits": {"readings": 5_000}}, who="kim"))
    told = Told()
    with Session(database_url) as session:
        made = Twins(context(session.database, told.publish, twins_per_s_max=20))

        async def shout() -> None:
            while True:
                made.reported(reported(evil, b'{"v":1,"version":0}'))
                await asyncio.sleep(0)

        async with running([*made.loops(), shout()]):
            await eventually_async(lambda: told.count(topics.link(evil, Channel.DESIRED_TWIN)) > 2)
            made.serve(SHARDS)
            await eventually_async(lambda: topics.link(good, Channel.DESIRED_TWIN) in told)


@pytest.mark.parametrize("payload", REPLIES)
async def test_a_reply_that_no_database_takes_keeps_nobody_waiting(
    database_url: str, pair: tuple[str, str], payload: bytes
) -> None:
    """The same for commands; a probe's NaN needs no malice."""
    evil, good = pair
    with closing(connect(database_url, application="test")) as connection:
        commands.give(connection, good, "sync-now", {}, expires_s=60, who="kim")
    told = Told()
    with Session(database_url) as session:
        made = Commands(context(session.database, told.publish))
        with contextlib.suppress(InvalidMessage):
            made.replied(evil, Reply.decode(payload), len(payload))
        made.serve(SHARDS)
        async with running(made.loops()):
            await eventually_async(lambda: topics.link(good, Channel.COMMAND) in told and not made._replies)


ENDS = (1 << 62) - 1, (1 << 62) - 2, 1 << 61, twins.VERSION_LEAD_MAX + 2


@pytest.mark.parametrize("document", ["", "there"])
@pytest.mark.parametrize("version", ENDS)
async def test_a_version_that_no_document_can_have_had_changes_nothing(
    database_url: str, pair: tuple[str, str], version: int, document: str
) -> None:
    """Twice in a row, with and without a document: it led the numbers to their end, and every worker to its own."""
    evil, good = pair
    with closing(connect(database_url, application="test")) as connection:
        if document:
            list(twins.change(connection, Selection((evil,)), {"limits": {"readings": 5_000}}, who="kim"))
        told = Told()
        with Session(database_url) as session:
            made = Twins(stands := context(session.database, told.publish))
            async with running(made.loops()):
                for _ in range(2):
                    made.reported(reported(evil, b'{"v":1,"version":%d,"confirmed":{},"errors":{}}' % version))
                    await eventually_async(lambda: not made._reports)
                list(twins.change(connection, Selection((good,)), {"limits": {"readings": 5_000}}, who="kim"))
                made.serve(SHARDS)
                await eventually_async(lambda: topics.link(good, Channel.DESIRED_TWIN) in told)
        assert isinstance(stands.failed, Failed)
        assert {(service, gateway) for service, gateway, _ in stands.failed} == {("twins", evil)}
        shown = twins.show(connection, evil)
        assert (shown["version"], shown["reported_version"]) == ((1, 0) if document else (None, None))


async def test_a_gateway_that_is_ahead_by_what_a_failover_lost_is_believed(
    database_url: str, pair: tuple[str, str]
) -> None:
    """The cloud went back to yesterday's database: the next change must have a version that the gateway takes."""
    gateway, _ = pair
    with closing(connect(database_url, application="test")) as connection:
        list(twins.change(connection, Selection((gateway,)), {"limits": {"readings": 5_000}}, who="kim"))
        twins.report(connection, gateway, ReportedTwin(version=40_000, confirmed={}, errors={}, firmware={}))
        assert twins.show(connection, gateway)["version"] == 40_001


async def test_a_row_that_no_gateway_could_be_sent_keeps_nobody_waiting(
    database_url: str, pair: tuple[str, str]
) -> None:
    """What is read back from the database is input too: the others get theirs, and it is said once."""
    evil, good = pair
    with closing(connect(database_url, application="test")) as connection:
        for gateway in pair:
            list(twins.change(connection, Selection((gateway,)), {"limits": {"readings": 5_000}}, who="kim"))
            commands.give(connection, gateway, "sync-now", {}, expires_s=60, who="kim")
        connection.execute(
            "UPDATE twin SET version = 4611686018427387904 FROM gateway g"
            " WHERE g.gateway_id = twin.gateway_id AND g.name = %s",
            [evil],
        )
        connection.execute(
            "UPDATE command SET name = 'No Such Name' FROM gateway g"
            " WHERE g.gateway_id = command.gateway_id AND g.name = %s",
            [evil],
        )
        told = Told()
        with Session(database_url) as session:
            stands = context(session.database, told.publish)
            services = Twins(stands), Commands(stands)
            loops = [loop for service in services for loop in service.loops()]
            async with running(loops):
                for service in services:
                    service.serve(SHARDS)
                for channel in (Channel.DESIRED_TWIN, Channel.COMMAND):
                    await eventually_async(lambda channel=channel: topics.link(good, channel) in told)  # type: ignore[misc, arg-type]
                for service in services:
                    service.wake()
                await eventually_async(lambda: not any(len(service.wake) for service in services))
        assert isinstance(stands.failed, Failed)
        assert sorted((service, gateway) for service, gateway, _ in stands.failed) == [
            ("commands", evil),
            ("twins", evil),
        ]
        [state] = [row["state"] for row in commands.newest(connection, limit=10, gateway=evil)]
        assert state == "failed"
        assert topics.link(evil, Channel.DESIRED_TWIN) not in told

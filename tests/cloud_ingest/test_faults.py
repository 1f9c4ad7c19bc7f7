"""Ingest under faults, on real servers and processes: whatever dies, edge and cloud agree afterwards, each entry once.

Every test ends with the oracle: the cloud's stock must be that of the entries the gateways have written.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import closing

import pytest

from broker_config.embedded.broker import EmbeddedBroker
from cloud_store.base import migrations
from cloud_store.base.connection import connect
from cloud_store.base.leases import LeaseSession
from cloud_store.merge import dead_letters
from testbed.eventually import eventually, eventually_async
from testbed.services import PrivateBroker, PrivateDatabase
from testbed.worker_process import Workers
from tests.cloud_ingest.sites import Site
from wire_protocol import topics
from wire_protocol.frames import FRAME_BYTES_MAX
from wire_protocol.topics import Channel

pytestmark = [pytest.mark.slow, pytest.mark.services]
SETTLED_S = 60.0


def under_way(site: Site, share: float) -> Callable[[], bool]:
    """Whether this share of the site's frames is acknowledged."""
    return lambda: sum(gateway.sender.acked_frame for gateway in site.gateways) >= share * site.frames


@pytest.mark.parametrize("lanes", ["1", "3"])
async def test_a_worker_killed_under_load_loses_and_doubles_nothing(
    worker: Workers, site_at: Callable[[str], Site], database_url: str, mqtt_url: str, lanes: str
) -> None:
    """SIGKILL in the middle, twice: the transaction rolls back, the next worker asks, the gateways send again."""
    site = site_at(database_url)
    for _ in range(8):
        site.add_gateway(frames=60, held=40)
    settings = {"STOCKTIDE_BATCH_FRAMES_MAX": "16", "STOCKTIDE_MERGE_LANES": lanes}
    async with site.fleet(mqtt_url) as fleet:
        for number in range(2):
            victim = worker(f"victim-{number}", database_url, mqtt_url, **settings)
            await fleet.until(under_way(site, 0.5), SETTLED_S)
            victim.kill()
            site.release(fleet, 20)
        worker("heir", database_url, mqtt_url)
        await fleet.settled(SETTLED_S)
    site.require_agreement()


async def test_two_workers_share_the_shards_and_one_takes_over(
    worker: Workers, site_at: Callable[[str], Site], database_url: str, mqtt_url: str
) -> None:
    """Side by side each holds half; when one is killed the other has all, and the fleet goes on."""
    site = site_at(database_url)
    first = worker("first", database_url, mqtt_url, STOCKTIDE_BATCH_FRAMES_MAX="16")
    worker("second", database_url, mqtt_url, STOCKTIDE_BATCH_FRAMES_MAX="16")
    await holders(database_url, [32, 32])
    for _ in range(16):
        site.add_gateway(frames=40, held=10)
    async with site.fleet(mqtt_url) as fleet:
        await fleet.until(under_way(site, 0.3), SETTLED_S)
        first.kill()
        site.release(fleet)
        await fleet.settled(SETTLED_S)
    await holders(database_url, [64])
    site.require_agreement()


async def test_a_database_killed_under_load_stops_everything_and_loses_nothing(
    worker: Workers, site_at: Callable[[str], Site], private_database: Callable[..., PrivateDatabase], mqtt_url: str
) -> None:
    """SIGKILL of PostgreSQL and a restart: nothing was acknowledged that is not there afterwards."""
    database = private_database()
    migrations.apply(database.url)
    site = site_at(database.url)
    for _ in range(8):
        site.add_gateway(frames=60, held=10)
    async with site.fleet(mqtt_url) as fleet:
        survivor = worker("survivor", database.url, mqtt_url, STOCKTIDE_BATCH_FRAMES_MAX="16")
        await fleet.until(under_way(site, 0.3), SETTLED_S)
        await asyncio.to_thread(database.kill)
        site.release(fleet)
        await asyncio.to_thread(database.start)
        await fleet.settled(SETTLED_S)
    assert survivor.stop() == 0
    site.require_agreement()


async def test_a_broker_restarted_empty_loses_nothing(
    worker: Workers, site_at: Callable[[str], Site], private_broker: Callable[..., PrivateBroker], database_url: str
) -> None:
    """The broker keeps nothing that anybody depends on."""
    broker = private_broker()
    site = site_at(database_url)
    for _ in range(8):
        site.add_gateway(frames=60, held=10)
    async with site.fleet(broker.url) as fleet:
        worker("survivor", database_url, broker.url, STOCKTIDE_BATCH_FRAMES_MAX="16")
        await fleet.until(under_way(site, 0.3), SETTLED_S)
        await asyncio.to_thread(broker.kill)
        site.release(fleet)
        await asyncio.to_thread(broker.start)
        await fleet.settled(SETTLED_S)
    site.require_agreement()


async def test_poison_goes_to_the_dead_letters_and_the_streams_go_on(
    worker: Workers, site_at: Callable[[str], Site], database_url: str, mqtt_url: str
) -> None:
    """Garbage, bombs, wrong versions, strangers, foreign streams, bad statuses: each kept once, with a reason."""
    site = site_at(database_url)
    honest, stranger = site.add_gateway(frames=20), f"{site.prefix}-stranger"
    worker("one", database_url, mqtt_url)
    await holders(database_url, [64])
    good = honest.frames[0]
    poison = [
        (topics.up(honest.name, "ledger"), b"{not json"),
        (topics.up(honest.name, "ledger"), os.urandom(FRAME_BYTES_MAX + 1)),
        (topics.up(honest.name, "ledger"), b'{"v":9,"stream":"ledger"}'),
        (topics.up(honest.name, "ledger"), b"x\x9c" + bytes(64)),
        (topics.up(honest.name, "readings"), good),
        (topics.up(stranger, "ledger"), good),
        (topics.link(honest.name, Channel.STATUS), b'{"v":1,"state":"bored"}'),
    ]
    async with site.fleet(mqtt_url) as fleet:

        def send_again() -> None:
            for topic, payload in poison:
                fleet.publish(topic, payload)

        await fleet.announced.wait()
        letters = await dead_letters_of(database_url, site.prefix, len(poison), meanwhile=send_again)
        await fleet.settled(SETTLED_S)
    reasons = sorted(f"{row['kind']}: {row['reason']}" for row in letters)
    assert len(reasons) == len(poison), reasons
    assert "refused: the gateway is not in the registry" in reasons
    assert any("has at most" in reason for reason in reasons)
    site.require_agreement()


async def test_sigterm_merges_what_has_arrived_and_exits_with_zero(
    worker: Workers, site_at: Callable[[str], Site], database_url: str, mqtt_url: str
) -> None:
    """A worker that is told to stop gives its leases back and leaves nothing half done."""
    site = site_at(database_url)
    site.add_gateway(frames=200, held=20)
    async with site.fleet(mqtt_url) as fleet:
        leaving = worker("leaving", database_url, mqtt_url)
        await fleet.until(under_way(site, 0.2), SETTLED_S)
        site.release(fleet)
        assert await asyncio.to_thread(leaving.stop) == 0
        await holders(database_url, [])
        worker("next", database_url, mqtt_url)
        await fleet.settled(SETTLED_S)
    site.require_agreement()


async def test_a_disabled_gateway_is_refused_and_comes_back(
    worker: Workers, site_at: Callable[[str], Site], database_url: str, mqtt_url: str
) -> None:
    """The registry decides, while the worker runs."""
    site = site_at(database_url)
    gateway = site.add_gateway(frames=10)
    with closing(connect(database_url, application="test")) as connection:
        connection.execute("UPDATE gateway SET state = 'disabled' WHERE name = %s", [gateway.name])
        worker("one", database_url, mqtt_url, STOCKTIDE_REFUSAL_QUIET_S="0.2")
        async with site.fleet(mqtt_url) as fleet:
            await dead_letters_of(database_url, site.prefix, 1)
            assert gateway.sender.acked_frame == 0
            connection.execute("UPDATE gateway SET state = 'active' WHERE name = %s", [gateway.name])
            await fleet.settled(SETTLED_S)
    site.require_agreement()


async def test_an_mqtt_311_broker_is_enough(worker: Workers, site_at: Callable[[str], Site], database_url: str) -> None:
    """The embedded broker of the demo speaks no MQTT 5; the system needs none."""
    site = site_at(database_url)
    site.add_gateway(frames=20)
    async with EmbeddedBroker() as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        leaving = worker("one", database_url, url, STOCKTIDE_MQTT_VERSION="3.1.1")
        async with site.fleet(url, "3.1.1") as fleet:
            await fleet.settled(SETTLED_S)
        assert await asyncio.to_thread(leaving.stop) == 0
    site.require_agreement()


async def holders(database_url: str, expected: list[int]) -> None:
    """Wait until live workers hold these numbers of shards; leases have no event, so they are looked at."""

    def is_held() -> bool:
        with closing(connect(database_url, application="test")) as connection:
            rows = connection.execute(
                "SELECT count(*) FROM shard_lease JOIN worker_session w USING (session_id) "
                "WHERE EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = w.pid) GROUP BY session_id"
            ).fetchall()
        return sorted(number for (number,) in rows) == sorted(expected)

    await asyncio.to_thread(eventually, is_held, f"the shards are held as {expected}")


async def dead_letters_of(
    database_url: str, prefix: str, number: int, *, meanwhile: Callable[[], None] = lambda: None
) -> list[dict[str, object]]:
    """Wait until a site's gateways have so many dead letters, and return them; `meanwhile` is done before each look.

    The worker also refuses the gateways of other tests, which use the same broker at the same time.
    """

    def read() -> list[dict[str, object]]:
        with closing(connect(database_url, application="test")) as connection:
            letters = dead_letters.newest(connection, limit=10_000)
        return [letter for letter in letters if str(letter["gateway"]).startswith(prefix)]

    async def enough() -> list[dict[str, object]]:
        meanwhile()
        letters = await asyncio.to_thread(read)
        return letters if len(letters) >= number else []

    return await eventually_async(enough, f"{number} dead letters of {prefix}", poll_s=0.1)


def test_a_lost_session_is_a_lost_lease(database_url: str) -> None:
    """A worker that dies leaves nothing to expire: the next survey sees the shards free."""
    with LeaseSession(database_url, "test-one") as one, LeaseSession(database_url, "test-two") as two:
        assert one.acquire(range(64)) == frozenset(range(64))
        assert two.acquire([5]) == frozenset()
        with closing(connect(database_url, application="test")) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'test-one'"
            )
        survey = two.survey()
        assert (survey.workers, survey.others) == (1, frozenset())
        assert two.acquire([5]) == frozenset({5})


CONNECTIONS_MAX = 4  # of a worker; twenty of them leave seventeen of a server's hundred for people and the API


@pytest.mark.bound("cloud.database_connections_max")
@pytest.mark.parametrize("lanes", [1, 3])
async def test_a_worker_holds_four_connections_at_rest_and_under_load(
    worker: Workers, site_at: Callable[[str], Site], database_url: str, mqtt_url: str, lanes: int
) -> None:
    """Twenty workers must fit PostgreSQL's default of a hundred connections, whatever their gateways do at once.

    One that merges in more lanes holds one more for each.
    """
    connections_max = CONNECTIONS_MAX + lanes - 1
    site = site_at(database_url)
    for _ in range(8):
        site.add_gateway(frames=60)
    settings = {"STOCKTIDE_BATCH_FRAMES_MAX": "16", "STOCKTIDE_MERGE_LANES": str(lanes)}
    worker("counted", database_url, mqtt_url, **settings)
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'stocktide-% counted'"
    )
    seen = list[int]()
    with closing(connect(database_url, application="test")) as watching:

        def count() -> int:
            seen.append((watching.execute(query).fetchone() or (0,))[0])
            return seen[-1]

        await eventually_async(lambda: count() >= 1)
        async with site.fleet(mqtt_url) as fleet:
            await fleet.until(lambda: count() > connections_max or under_way(site, 1.0)(), SETTLED_S)
            await fleet.settled(SETTLED_S)
        count()
    assert max(seen) <= connections_max
    site.require_agreement()

"""The bounds of an ingest worker, the store and the API, each reached: what is beyond waits, is dropped or is refused.

The bounds that are reached in the tests of their own parts are marked there; a hundred gateways at once are in
`test_hundred_gateways.py`.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from cloud_ingest.inbound import Inbound
from cloud_ingest.merge.inbox import Inbox
from cloud_ingest.merge.loop import MergeLoop
from cloud_ingest.merge.presence import Presence
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
from cloud_ingest.transport.link import Link
from cloud_store.base import migrations
from cloud_store.base.connection import connect
from cloud_store.base.database import Database
from cloud_store.base.errors import DatabaseUnavailable
from cloud_store.merge import dead_letters, presence
from cloud_store.merge.arrivals import ArrivedFrame, LogKey, MergeReport
from cloud_store.merge.dead_letters import DeadLetter, LetterKind
from cloud_store.merge.presence import Contacts, Standing
from testbed.eventually import eventually
from testbed.gateways import epoch
from testbed.services import PrivateDatabase
from testbed.store import Failed, StoreModule, context, running
from testbed.worker_process import Workers
from tests.bounds.clients import Doorkeeper
from tests.cloud_ingest.sites import Site
from tests.cloud_store.histories import EPOCH, NOW_MS, Chain, movement
from wire_protocol import clock
from wire_protocol.messages import GatewayStatus
from wire_protocol.replication import NO_CURSOR
from wire_protocol.topics import Channel

ENTRIES = 40


def frames_of(gateway: str, number: int) -> list[Inbound]:
    """Frames that arrived, of 40 entries each."""
    chain, made = Chain(gateway), []
    for frame in range(number):
        entries = [
            movement(clock.pack(NOW_MS, frame * ENTRIES + n), "receive", "@supplier", "A-1") for n in range(ENTRIES)
        ]
        made.append(Inbound(gateway, Channel.LEDGER, "topic", chain.seal(entries).payload, NOW_MS))
    return made


async def merged(arrivals: list[Inbound], **settings: Any) -> list[tuple[int, int]]:
    """The sizes of the transactions, in frames and entries, that a worker makes of what has arrived."""
    batches = list[tuple[int, int]]()

    async def merge_frames(frames: Sequence[ArrivedFrame]) -> MergeReport:
        batches.append((len(frames), sum(arrived.frame.header.count for arrived in frames)))
        return MergeReport()

    inbox = Inbox(frames_max=1_000, bytes_max=1 << 30)
    loop = MergeLoop(context(batch_delay_ms=0, **settings), inbox=inbox, merge_frames=merge_frames)
    for arrival in arrivals:
        assert loop.offer(arrival)
    async with running([loop.run()]):
        await loop.drained()
    return batches


@pytest.mark.bound("cloud.batch_frames_max")
async def test_a_batch_has_no_more_frames_than_it_may() -> None:
    """One huge batch would hold the locks of all its gateways for as long as it takes."""
    batches = await merged(frames_of("gw-a", 20), batch_frames_max=8)
    assert [frames for frames, _ in batches] == [8, 8, 4]


@pytest.mark.bound("cloud.batch_entries_max")
async def test_a_transaction_has_no_more_entries_than_it_may() -> None:
    """Frames of a backlog have five times the entries of others; the transaction must not grow with them."""
    batches = await merged(frames_of("gw-a", 30), batch_entries_max=500)
    assert max(entries for _, entries in batches) == 480  # the next frame of 40 would not fit
    assert sum(entries for _, entries in batches) == 1_200


@pytest.mark.bound("cloud.inbox_frames_target")
@pytest.mark.bound("cloud.window_frames_max")
def test_windows_shrink_to_one_frame_at_the_target() -> None:
    """Long before the inbox is full: otherwise the wait in it outlasts the gateways' timers, and all is sent twice."""
    inbox = Inbox(frames_max=1_000, bytes_max=1 << 30)
    loop = MergeLoop(context(window_frames_max=16, inbox_frames_target=100), inbox=inbox, merge_frames=AsyncMock())
    windows = []
    for number in range(150):
        windows.append(loop.window)
        inbox.offer(Inbound("gw-a", Channel.LEDGER, "topic", b"%d" % number, NOW_MS))
    assert windows[:51] == [16] * 51
    assert windows[51:101] == sorted(windows[51:101], reverse=True)
    assert windows[100:] == [1] * 50


@pytest.mark.bound("cloud.outgoing_messages_max")
def test_acknowledgements_beyond_the_bound_are_dropped_and_counted() -> None:
    """Nobody reads them while the broker is away; the gateways ask again, so to keep them all would help nobody."""
    metrics = WorkerMetrics()
    link = Link(IngestSettings(outgoing_messages_max=100), metrics, Failed(), lambda _: None)
    for _ in range(130):
        link.publish("topic", b"ack")
    assert link._outgoing.qsize() == 100
    assert metrics.registry.get_sample_value("stocktide_acks_total", {"outcome": "overflow"}) == 30


@pytest.mark.bound("cloud.outgoing_bytes_max")
async def test_what_waits_to_be_published_is_bounded_in_bytes() -> None:
    """Answers to a site have half a megabyte: ten thousand of them would be five gigabytes."""
    metrics = WorkerMetrics()
    link = Link(IngestSettings(outgoing_bytes_max=1 << 20), metrics, Failed(), lambda _: None)
    for _ in range(2):
        for _ in range(5):
            link.publish("topic", bytes(1 << 18))
        assert link._outgoing.qsize() == 4
        link._drop_outgoing()  # the link breaks
    assert metrics.registry.get_sample_value("stocktide_acks_total", {"outcome": "overflow"}) == 2

    class Client:
        """Publishes at once."""

        async def publish(self, *_: object, **__: object) -> None:
            """Part of `aiomqtt.Client`."""

    link.publish("topic", bytes(1 << 20))
    publishing = asyncio.create_task(link._publish(cast("Any", Client())))
    await link.flush()
    link.publish("topic", bytes(1 << 20))
    await link.flush()
    publishing.cancel()
    await asyncio.wait([publishing])
    assert metrics.registry.get_sample_value("stocktide_acks_total", {"outcome": "published"}) == 2


@pytest.mark.bound("cloud.asks_per_s_max")
async def test_gateways_are_asked_a_few_at_a_time() -> None:
    """A fleet that is asked all at once after a takeover answers all at once."""
    standing = Standing({LogKey(f"gw-{n}", "ledger", EPOCH): NO_CURSOR for n in range(25)}, {})
    asked, pauses = list[str](), list[tuple[int, float]]()

    def publish(topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        del payload, qos, retain
        asked.append(topic)

    async def pause(seconds: float) -> None:
        pauses.append((len(asked), seconds))

    stands = replace(context({presence.exchange: lambda _: standing}, publish, asks_per_s_max=10), pause=pause)
    made = Presence(stands, lambda _: 16)
    made.subscribed(frozenset({1}))
    await made.answer()
    assert len(asked) == 25
    assert pauses == [(10, 1.0), (20, 1.0)]


@pytest.mark.bound("cloud.status_waiting_max")
async def test_statuses_and_their_dead_letters_wait_in_bounded_numbers() -> None:
    """The database is away and ten thousand gateways come online: their last statuses wait, not all they ever said."""
    stored = list[tuple[int, int]]()

    def exchange(contacts: Contacts) -> Standing:
        stored.append((len(contacts.statuses), len(contacts.letters)))
        return Standing({}, {})

    made = Presence(context({presence.exchange: exchange}, status_waiting_max=100), lambda _: 16)
    status = GatewayStatus(state="online", epoch=epoch(), version="1", at_ms=NOW_MS).encode()
    for number in range(150):
        for payload in (status, status, b"{nonsense"):
            made.reported(Inbound(f"gw-{number}", Channel.STATUS, "topic", payload, NOW_MS))
    await made.answer()
    assert stored == [(100, 100)]


@pytest.mark.slow
@pytest.mark.bound("cloud.reconnect_delay_s_max")
@pytest.mark.parametrize("polite", [True, False])
def test_a_worker_that_is_refused_asks_again_and_again(
    worker: Workers,
    database_url: str,
    *,
    polite: bool,
) -> None:
    """Doubled without an end, the pause after a night's outage of the broker would be hours."""
    with Doorkeeper(polite=polite) as listener:
        worker("refused", database_url, listener.url, STOCKTIDE_RECONNECT_DELAY_S_MAX="0.1")
        # Unbounded, the pause before the fourteenth would be minutes.
        eventually(lambda: listener.attempts >= 14)


@pytest.mark.slow
@pytest.mark.bound("cloud.drain_s_max")
async def test_a_worker_that_cannot_drain_gives_up_in_time(
    worker: Workers,
    site_at: Callable[[str], Site],
    private_database: Callable[..., PrivateDatabase],
    mqtt_url: str,
) -> None:
    """SIGTERM while the database is away: what it holds was not acknowledged, so it may go, and with exit code 0."""
    database = private_database()
    migrations.apply(database.url)
    site = site_at(database.url)
    for _ in range(4):
        site.add_gateway(frames=200)
    async with site.fleet(mqtt_url) as fleet:
        leaving = worker("leaving", database.url, mqtt_url, STOCKTIDE_BATCH_FRAMES_MAX="4", STOCKTIDE_DRAIN_S_MAX="0.5")
        await fleet.until(lambda: fleet.frames_acked > 50, 60)
        await asyncio.to_thread(database.kill)
        await asyncio.to_thread(eventually, lambda: "merge_failed" in leaving.log_file.read_text())
        assert await asyncio.to_thread(leaving.stop) == 0
        assert "drain_incomplete" in leaving.log_file.read_text()
        await asyncio.to_thread(database.start)
        worker("heir", database.url, mqtt_url)
        await fleet.settled(60)
    site.require_agreement()


@pytest.mark.bound("cloud_store.merge.dead_letters.ROWS_MAX")
@pytest.mark.bound("cloud_store.merge.dead_letters.ROWS_PER_GATEWAY_MAX")
@pytest.mark.bound("cloud_store.merge.dead_letters.PAYLOAD_BYTES_MAX")
def test_a_flood_of_dead_letters_pushes_nobody_elses_out(database_url: str) -> None:
    """One hostile gateway must neither fill the disk nor hide what went wrong at the others."""
    huge = os.urandom(dead_letters.PAYLOAD_BYTES_MAX + 1)
    flood = [DeadLetter(LetterKind.FRAME, "gw-hostile", "topic", "no", b"%d" % n) for n in range(1_000)]
    others = [DeadLetter(LetterKind.FRAME, f"gw-{n}", f"topic {n}", "no", b"once") for n in range(20)]
    with StoreModule(dead_letters, database_url) as store, closing(connect(database_url, application="test")) as reader:
        store.add([*others, DeadLetter(LetterKind.FRAME, "gw-large", "topic", "no", huge)])
        store.add(flood)
        store.add(flood[:100])
        assert reader.execute("SELECT count(*), sum(times) FROM dead_letter").fetchone() == (1_021, 1_121)
        store.trim()
        rows = dead_letters.newest(reader, limit=10_000)
        kept = [row for row in rows if row["gateway"] == "gw-hostile"]
        assert len(kept) == dead_letters.ROWS_PER_GATEWAY_MAX
        assert len(rows) == len(kept) + 21
        longest = reader.execute("SELECT max(length(payload)), max(payload_bytes) FROM dead_letter").fetchone()
        assert longest == (dead_letters.PAYLOAD_BYTES_MAX, len(huge))
        assert dead_letters.trim(reader, rows_max=50) == len(rows) - 50


@pytest.mark.bound("api.connections_max")
def test_requests_beyond_the_connections_wait_and_are_told(database_url: str) -> None:
    """A flood of requests must not take the connections that the workers merge with."""
    with (
        Database(database_url, application="test", connections_max=2, wait_s_max=0.2) as database,
        database.connection(),
        database.connection(),
        pytest.raises(DatabaseUnavailable, match="All 2 connections"),
        database.connection(),
    ):
        pass

"""What an ingest worker keeps while the database is away for hours: bounded in number and in bytes, of every kind."""

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import pytest

from cloud_ingest.merge.inbox import Arrival, Inbox
from cloud_ingest.merge.presence import Contacts
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.services.catalog import Catalogs
from cloud_ingest.services.commands import Commands
from cloud_ingest.services.commands import decode as decode_reply
from cloud_ingest.services.enrolment import Enrolment
from cloud_ingest.services.sites import Sites
from cloud_ingest.services.stock_checks import Proofs
from cloud_ingest.services.twins import Twins
from cloud_ingest.settings import IngestSettings
from cloud_ingest.waiting import Waiting
from cloud_store.base.errors import DatabaseUnavailable
from cloud_store.merge.arrivals import ArrivedFrame, MergedFrame
from cloud_store.provisioning.catalog import News
from tests.cloud_store.histories import EPOCH, NOW_MS, Chain, movement
from wire_protocol import clock, names, topics
from wire_protocol.messages import ClaimRequest, GatewayStatus, Reply
from wire_protocol.site_messages import LogCursor, SiteAsk

KIB, MIB = 1 << 10, 1 << 20
SETTINGS = IngestSettings(waiting_bytes_max=MIB, status_waiting_max=1_000, site_asks_waiting_max=1_000)
NOBODY = cast("Any", None)


def test_messages_wait_in_bounded_numbers_and_bytes() -> None:
    """The latest of each key, and room again for all that was taken out."""
    waiting: Waiting[str, bytes] = Waiting(messages_max=3, bytes_max=10)
    assert [waiting.put(key, b"1", size) for key, size in [("a", 4), ("b", 4), ("c", 3)]] == [True, True, False]
    assert [waiting.put(key, b"2", size) for key, size in [("a", 7), ("a", 5), ("c", 1)]] == [False, True, True]
    assert (list(waiting), waiting["a"]) == (["a", "b", "c"], b"2")
    assert not waiting.put("d", b"", 0)
    waiting.discard("a", b"1")
    assert "a" in waiting, "a later one has taken its place"
    waiting.discard("a", b"2")
    assert waiting.pop_first() == ("b", b"1")
    assert waiting.put("e", b"", 9)
    waiting.clear()
    assert waiting.put("f", b"", 10)


class Take(Protocol):
    """Hands the payload of a gateway to a part of the worker, whose database is away."""

    def __call__(self, gateway: str, payload: bytes) -> None: ...


def _twins(made: list[Any]) -> tuple[Take, bytes]:
    twins = Twins(SETTINGS, NOBODY, NOBODY, WorkerMetrics())
    made.append(twins._reports)
    errors = {f"d-{number}": "x" * 100 for number in range(100)}
    return twins.reported, json.dumps({"v": 1, "version": 0, "errors": errors}).encode()


def _commands(made: list[Any]) -> tuple[Take, bytes]:
    commands = Commands(SETTINGS, NOBODY, NOBODY)
    made.append(commands._replies)

    def take(gateway: str, payload: bytes) -> None:
        reply = decode_reply(gateway, payload)
        assert reply is not None
        commands.replied(gateway, reply, len(payload))

    return take, Reply(id="x", ok=True, result={"text": "x" * 10_000}).encode()


def _sites(made: list[Any]) -> tuple[Take, bytes]:
    sites = Sites(SETTINGS, NOBODY, NOBODY, WorkerMetrics())
    made.append(sites._asks)
    logs = tuple(LogCursor(gateway=f"gw-{number}", epoch=EPOCH, frame=1) for number in range(100))
    return sites.asked, SiteAsk(logs=logs).encode()


def _letters(made: list[Any]) -> tuple[Take, bytes]:
    contacts = Contacts(SETTINGS, NOBODY, NOBODY, NOBODY)
    made.append(contacts._letters)

    def take(gateway: str, payload: bytes) -> None:
        contacts.heard(gateway, "topic", payload, received_ms=NOW_MS, retained=False)

    return take, b"nonsense" * 1_250


@pytest.mark.bound("cloud.waiting_bytes_max")
@pytest.mark.bound("cloud.status_waiting_max")
@pytest.mark.parametrize("kind", [_twins, _commands, _sites, _letters])
def test_a_fleet_that_goes_on_talking_fills_no_memory(kind: Callable[[list[Any]], tuple[Take, bytes]]) -> None:
    """A thousand messages of a quarter of a megabyte each are within the bound of their number."""
    made: list[Any] = []
    take, payload = kind(made)
    assert len(payload) > 5 * KIB
    for number in range(1_000):
        take(f"gw-{number}", payload)
    (waiting,) = made
    assert len(waiting) == MIB // len(payload)


def test_replies_to_a_bisection_are_bounded_in_bytes() -> None:
    """Whoever is asked may answer with a quarter of a megabyte."""
    proofs = Proofs(SETTINGS, NOBODY, NOBODY, WorkerMetrics())
    reply = Reply(id="proof-1", ok=True)
    for number in range(100):
        proofs._searches[f"gw-{number}"] = cast("Any", _Question("proof-1"))
        assert proofs.replied(f"gw-{number}", reply, 256 * KIB)
    assert len(proofs._replies) == 4


class _Question:
    """As much of a search as `replied` looks at."""

    def __init__(self, command: str) -> None:
        self.command = command


def test_frames_for_other_gateways_are_bounded_in_bytes() -> None:
    """They were merged and the database went away before it was known whom to pass them to."""
    sites = Sites(SETTINGS, NOBODY, NOBODY, WorkerMetrics())
    sealed = Chain("gw-a").seal([movement(clock.pack(NOW_MS), "receive", "@supplier", "A-1")])
    read = ArrivedFrame.read("gw-a", "ledger", sealed.payload, NOW_MS)
    frame = MergedFrame(read, 1, ())
    number = MIB // len(sealed.payload)
    settings = SETTINGS.model_copy(update={"inbox_frames_max": 10 * number})
    sites._settings = settings
    for _ in range(3):
        sites.merged([frame] * number)
    assert len(sites._merged) == number
    few = Sites(IngestSettings(inbox_frames_max=16), NOBODY, NOBODY, WorkerMetrics())
    few.merged([frame] * 200)
    assert len(few._merged) == 16, "the bound holds within a batch too"


def test_frames_that_are_being_merged_count_in_bytes() -> None:
    """A batch is tried again for as long as the database is away; the inbox must not fill up anew behind it."""
    inbox = Inbox(frames_max=1_000, bytes_max=1_000)
    offered = [Arrival("gw-a", "ledger", "topic", b"%03d" % n * 100, NOW_MS) for n in range(5)]
    assert [inbox.offer(each) for each in offered] == ["taken", "taken", "taken", "no_room", "no_room"]
    taken = inbox.take(2)
    assert inbox.offer(offered[3]) == "no_room"
    inbox.settled([(each.gateway, each.payload) for each in [*taken, *taken]])
    assert [inbox.offer(each) for each in offered[3:]] == ["taken", "taken"]


def test_arrivals_are_bounded_and_those_without_room_arrive_with_their_next_status() -> None:
    """One gateway that comes in epoch after epoch, or a fleet of them, while nobody can be answered."""
    settings = IngestSettings(status_waiting_max=100)
    contacts = Contacts(settings, NOBODY, NOBODY, NOBODY)

    def say(gateway: str, number: int, state: str = "online", *, arrived: bool = True) -> None:
        epoch = names.ulid(NOW_MS + number, bytes(10))
        status = GatewayStatus(state=cast("Any", state), epoch=epoch, arrived=arrived, version="1")
        contacts.heard(gateway, "topic", status.encode(), received_ms=NOW_MS, retained=False)

    for number in range(500):
        say("gw-clones", number)
    assert len(contacts._arrived) == 4, "as many epochs as are remembered of one gateway"
    for number in range(500):
        say("gw-flapping", number)
        say("gw-flapping", number, "offline")
    assert len(contacts._arrived) == 4, "whoever has left waits for no answer"
    for number in range(200):
        say(f"gw-{number}", 0)
    assert len(contacts._arrived) == 100
    contacts._arrived.clear()
    say("gw-199", 0, arrived=False)
    say("gw-0", 0, arrived=False)
    assert {gateway for gateway, _ in contacts._arrived} == {"gw-199"}, "the first was noted to be there, and answered"


def test_gateways_that_send_after_a_takeover_are_noted_in_bounded_numbers() -> None:
    """Their frames are taken while nobody can look their cursors up."""
    contacts = Contacts(IngestSettings(status_waiting_max=100), NOBODY, NOBODY, NOBODY)
    contacts.subscribed(frozenset(range(topics.SHARDS)))
    for number in range(300):
        contacts.sending(f"gw-{number}", "ledger")
    assert len(contacts._sending) == 100


async def test_a_claim_that_is_too_large_does_not_wait() -> None:
    """A broker takes packets of a quarter of a megabyte, and what is none of ours is found only when it is read."""
    enrolment = Enrolment(SETTINGS, NOBODY, None, NOBODY, WorkerMetrics())
    enrolment.claimed("c1a1m00a", bytes(ClaimRequest.bytes_max + 1))
    enrolment.claimed("c1a1m00b", bytes(ClaimRequest.bytes_max))
    enrolment.renewing("gw-a", bytes(ClaimRequest.bytes_max + 1))
    assert [name for _, name in enrolment._waiting] == ["c1a1m00b"]


class FlakyCatalogs:
    """A store whose database goes away after the heads were read, once."""

    def __init__(self) -> None:
        self.version, self.away = 1, False

    def heads(self) -> dict[int, int]:
        """Part of `CatalogStore`."""
        return {1: self.version}

    def changed(self, tenants: Sequence[int], _shards: object) -> list[News]:
        """Part of `CatalogStore`."""
        assert set(tenants) == {1}
        if self.away:
            self.away = False
            raise DatabaseUnavailable
        return [News("gw-1", self.version), News("gw-2", self.version)]


async def test_news_of_a_catalogue_survive_a_database_that_goes_away() -> None:
    """They were forgotten, and gateways learned of an article when they asked by themselves; each waits once."""
    store, told = FlakyCatalogs(), list[str]()
    catalogs = Catalogs(SETTINGS, cast("Any", store), lambda topic, _: told.append(topic))
    await catalogs._compare()
    store.version, store.away = 2, True
    with pytest.raises(DatabaseUnavailable):
        await catalogs._compare()
    for version in (2, 3, 4):
        store.version = version
        await catalogs._compare()
        assert [news.gateway for news in catalogs._news] == ["gw-1", "gw-2"]
    await catalogs._tell()
    assert told == [topics.link(gateway, topics.Channel.CATALOG) for gateway in ("gw-1", "gw-2")]

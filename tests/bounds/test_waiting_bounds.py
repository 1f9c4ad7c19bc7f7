"""What an ingest worker keeps while the database is away for hours: bounded in number and in bytes, of every kind."""

import json
from collections.abc import Callable
from typing import Any, Protocol, cast

import pytest

from cloud_ingest.inbound import Inbound
from cloud_ingest.mailbox import ITEMS_OF_A_SENDER_MAX, Mailbox
from cloud_ingest.merge.inbox import Inbox
from cloud_ingest.merge.presence import Presence
from cloud_ingest.services.catalog import Catalogs
from cloud_ingest.services.commands import Commands
from cloud_ingest.services.enrolment import Enrolment
from cloud_ingest.services.sites import Sites
from cloud_ingest.services.stock_checks import StockChecks
from cloud_ingest.services.twins import Twins
from cloud_store.base.errors import DatabaseUnavailable
from cloud_store.merge.arrivals import ArrivedFrame, MergedFrame
from cloud_store.provisioning import catalog
from cloud_store.provisioning.catalog import News
from testbed.eventually import eventually_async
from testbed.store import context, running
from tests.cloud_store.histories import EPOCH, NOW_MS, Chain, movement
from wire_protocol import clock, names, topics
from wire_protocol.catalog import CatalogPosition, CatalogRequest
from wire_protocol.messages import ClaimRequest, GatewayStatus, Reply
from wire_protocol.site_messages import LogCursor, SiteRequest
from wire_protocol.topics import Channel

KIB, MIB = 1 << 10, 1 << 20
SETTINGS: dict[str, Any] = {
    "waiting_bytes_max": MIB,
    "status_waiting_max": 1_000,
    "site_asks_waiting_max": 1_000,
    "reports_waiting_max": 1_000,
    "replies_waiting_max": 1_000,
}


def inbound(gateway: str, channel: Channel, payload: bytes) -> Inbound:
    """A message as it comes in."""
    return Inbound(gateway, channel, "topic", payload, NOW_MS)


def test_a_mailbox_is_bounded_in_numbers_and_bytes_and_in_what_one_sender_has_in_it() -> None:
    """The latest of each key, and room again for all that was taken out."""
    refused = list[str]()
    box: Mailbox[str, bytes] = Mailbox("box", items_max=3, bytes_max=10, refused=lambda: refused.append("x"))
    assert [box.put(key, b"1", size) for key, size in [("a", 4), ("b", 4), ("c", 3)]] == [True, True, False]
    assert [box.put(key, b"2", size) for key, size in [("a", 7), ("a", 5), ("c", 1)]] == [False, True, True]
    assert not box.put("d", b"", 0)
    assert len(refused) == 3
    assert box.pop() == ("a", b"2", 5)
    box.put("a", b"3", 1)
    box.restore("a", b"2", 5)
    assert box.values() == [b"1", b"2", b"3"], "a later one has taken its place"
    assert [box.pop()[0] for _ in range(3)] == ["b", "c", "a"]
    assert box.put("e", b"", 10)
    many: Mailbox[tuple[str, int], bytes] = Mailbox("many", items_max=1_000)
    taken = [many.put(("gw-loud", number), b"") for number in range(200)]
    assert sum(taken) == ITEMS_OF_A_SENDER_MAX
    assert many.put(("gw-quiet", 1), b""), "one sender must not fill what all share"


class Take(Protocol):
    """Hands the payload of a gateway to a part of the worker, whose database is away."""

    def __call__(self, gateway: str, payload: bytes) -> None: ...


def _twins(made: list[Any]) -> tuple[Take, bytes]:
    twins = Twins(context(**SETTINGS))
    made.append(twins._reports)
    errors = {f"d-{number}": "x" * 100 for number in range(100)}
    payload = json.dumps({"v": 1, "version": 0, "errors": errors}).encode()
    return lambda gateway, payload: twins.reported(inbound(gateway, Channel.REPORTED_TWIN, payload)), payload


def _commands(made: list[Any]) -> tuple[Take, bytes]:
    commands = Commands(context(**SETTINGS))
    made.append(commands._replies)
    reply = Reply(id="x", ok=True, result={"text": "x" * 10_000})
    return lambda gateway, payload: commands.replied(gateway, reply, len(payload)), reply.encode()


def _sites(made: list[Any]) -> tuple[Take, bytes]:
    sites = Sites(context(**SETTINGS))
    made.append(sites.requests)
    logs = tuple(LogCursor(gateway=f"gw-{number}", epoch=EPOCH, frame=1) for number in range(100))
    return lambda gateway, payload: sites.requested(inbound(gateway, Channel.SITE_REQUEST, payload)), SiteRequest(
        logs=logs
    ).encode()


def _letters(made: list[Any]) -> tuple[Take, bytes]:
    presence = Presence(context(**SETTINGS), lambda _: 16)
    made.append(presence._letters)
    return lambda gateway, payload: presence.reported(inbound(gateway, Channel.STATUS, payload)), b"nonsense" * 1_250


@pytest.mark.bound("cloud.waiting_bytes_max")
@pytest.mark.bound("cloud.status_waiting_max")
@pytest.mark.bound("cloud.replies_waiting_max")
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
    """The gateway that is asked may answer with a quarter of a megabyte."""
    checks = StockChecks(context(**SETTINGS))
    reply = Reply(id="proof-1", ok=True)
    for number in range(100):
        checks._searches[f"gw-{number}"] = cast("Any", _Question("proof-1"))
        assert checks.replied(f"gw-{number}", reply, 256 * KIB)
    assert len(checks._replies) == 4


class _Question:
    """As much of a search as `replied` looks at."""

    def __init__(self, command: str) -> None:
        self.command = command


def test_frames_for_other_gateways_are_bounded_in_bytes() -> None:
    """They were merged and the database went away before it was known whom to pass them to."""
    sealed = Chain("gw-a").seal([movement(clock.pack(NOW_MS), "receive", "@supplier", "A-1")])
    read = ArrivedFrame.read("gw-a", "ledger", sealed.payload, NOW_MS)
    frame = MergedFrame(read, 1, ())
    number = MIB // len(sealed.payload)
    sites = Sites(context(**SETTINGS | {"inbox_frames_max": 10 * number}))
    for _ in range(3):
        sites.merged([frame] * number)
    assert len(sites._merged) == number
    few = Sites(context(inbox_frames_max=16))
    few.merged([frame] * 200)
    assert len(few._merged) == 16, "the bound holds within a batch too"


def test_frames_that_are_being_merged_count_in_bytes() -> None:
    """A batch is tried again for as long as the database is away; the inbox must not fill up again behind it."""
    inbox = Inbox(frames_max=1_000, bytes_max=1_000)
    offered = [inbound("gw-a", Channel.LEDGER, b"%03d" % n * 100) for n in range(5)]
    assert [inbox.offer(each) for each in offered] == ["taken", "taken", "taken", "no_room", "no_room"]
    taken = inbox.take(2)
    assert inbox.offer(offered[3]) == "no_room"
    inbox.settled([(each.sender, each.payload) for each in [*taken, *taken]])
    assert [inbox.offer(each) for each in offered[3:]] == ["taken", "taken"]


def test_arrivals_are_bounded_and_those_without_room_arrive_with_their_next_status() -> None:
    """One gateway that comes in epoch after epoch, or a fleet of them, while nobody can be answered."""
    presence = Presence(context(status_waiting_max=100), lambda _: 16)

    def say(gateway: str, number: int, state: str = "online", *, arrived: bool = True) -> None:
        epoch = names.ulid(NOW_MS + number, bytes(10))
        status = GatewayStatus(state=cast("Any", state), epoch=epoch, arrived=arrived, version="1")
        presence.reported(inbound(gateway, Channel.STATUS, status.encode()))

    for number in range(500):
        say("gw-clones", number)
    assert len(presence._arrived) == 4, "as many epochs as are remembered of one gateway"
    for number in range(500):
        say("gw-flapping", number)
        say("gw-flapping", number, "offline")
    assert len(presence._arrived) == 4, "one that has left waits for no answer"
    for number in range(200):
        say(f"gw-{number}", 0)
    assert len(presence._statuses) == 100
    assert len(presence._arrived) == 4 + 98
    presence._arrived.clear()
    presence._statuses.clear()
    say("gw-199", 0, arrived=False)
    say("gw-0", 0, arrived=False)
    assert {gateway for gateway, _ in presence._arrived} == {"gw-199"}, "the first was noted to be there, and answered"


def test_gateways_that_send_after_a_takeover_are_noted_in_bounded_numbers() -> None:
    """Their frames are taken while nobody can look their cursors up."""
    presence = Presence(context(status_waiting_max=100), lambda _: 16)
    presence.subscribed(frozenset(range(topics.SHARDS)))
    for number in range(300):
        presence.sending(f"gw-{number}", "ledger")
    assert len(presence._sending) == 100


async def test_a_claim_that_is_too_large_does_not_wait() -> None:
    """A broker takes packets of a quarter of a megabyte, and what is none of ours is found only when it is read."""
    enrolment = Enrolment(context(**SETTINGS), None)
    enrolment.requested(inbound("c1a1m00a", Channel.CLAIM_REQUEST, bytes(ClaimRequest.bytes_max + 1)))
    enrolment.requested(inbound("c1a1m00b", Channel.CLAIM_REQUEST, bytes(ClaimRequest.bytes_max)))
    enrolment.requested(inbound("gw-a", Channel.CERTIFICATE_REQUEST, bytes(ClaimRequest.bytes_max + 1)))
    assert enrolment._claims.pop()[0] == ("c1a1m00b", Channel.CLAIM_REQUEST)
    assert not enrolment._claims
    assert not enrolment._renewals


@pytest.mark.bound("cloud.catalog_notices_waiting_max")
@pytest.mark.bound("cloud.catalog_requests_waiting_max")
async def test_news_of_a_catalogue_survive_a_database_that_goes_away() -> None:
    """They were forgotten, and gateways learned of an article when they asked by themselves; each waits once."""
    told = list[str]()
    state = {"version": 1, "away": 0}

    def changed(tenants: set[int], _shards: object) -> list[News]:
        assert tenants == {1}
        if state["away"]:
            state["away"] = 0
            raise DatabaseUnavailable
        return [News(f"gw-{number}", state["version"]) for number in (1, 2, 3)]

    def publish(topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        del payload, qos, retain
        told.append(topic)

    answers = {catalog.heads: lambda: {1: state["version"]}, catalog.changed: changed}
    made = Catalogs(context(answers, publish, catalog_notices_waiting_max=2, catalog_requests_waiting_max=2))
    await made._compare(None, None)
    state |= {"version": 2, "away": 1}
    with pytest.raises(DatabaseUnavailable):
        await made._compare(None, None)
    for version in (2, 3, 4):
        state["version"] = version
        await made._compare(None, None)
        assert made._outdated.values() == [version, version]
    async with running(made.loops()):
        await eventually_async(lambda: len(told) == 2)
    assert told == [topics.link(gateway, Channel.CATALOG) for gateway in ("gw-1", "gw-2")]
    for gateway in ("gw-1", "gw-2", "gw-3"):
        made.requested(inbound(gateway, Channel.CATALOG_REQUEST, CatalogRequest(after=CatalogPosition()).encode()))
    assert len(made._requests) == 2

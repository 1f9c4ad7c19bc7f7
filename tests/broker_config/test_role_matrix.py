"""Every topic of the cloud's table, tried by every role in both directions on real brokers over TLS."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiomqtt
import pytest

from tests.broker_config.clients import Listener, Topic
from tests.brokers import FleetBrokers
from wire_protocol import topics
from wire_protocol.names import INGEST_USER
from wire_protocol.topics import TOPICS, Role

pytestmark = [pytest.mark.services]
OWNERS = {"{gateway}": ("gw-a", "gw-b"), "{claim}": ("c1a1m00a", "c1a1m00b")}
CLAIMANTS = OWNERS["{claim}"]


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetBrokers]:
    with FleetBrokers(tmp_path_factory.mktemp("brokers")) as made:
        yield made


def table() -> list[Topic]:
    """Every concrete topic with the one who may publish and the one who may subscribe, read from the table anew."""
    made = []
    for rule in TOPICS:
        for placeholder, owners in OWNERS.items():
            for owner in owners if placeholder in rule.pattern else ():
                shard = f"{topics.shard(owner):02x}"
                name = rule.pattern.replace(placeholder, owner).replace("{shard}", shard)
                up = rule.publisher in {Role.GATEWAY, Role.CLAIMANT}
                made.append(Topic(name, rule, owner if up else INGEST_USER, INGEST_USER if up else owner))
    return made


def client(brokers: FleetBrokers, user: str) -> aiomqtt.Client:
    if user == INGEST_USER:
        return brokers.worker()
    return brokers.claimant(user) if user in CLAIMANTS else brokers.gateway(user)


async def test_each_role_reaches_what_the_table_says_and_nothing_else(
    brokers: FleetBrokers, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariant I5 on the brokers as deployed: mutual TLS, the workers' listener, the claims broker and its bridge.

    Everybody subscribes to everything and publishes everywhere; what counts is what is delivered, because Mosquitto
    accepts every subscription and filters at delivery.
    """
    rows = table()
    users = [INGEST_USER, *(name for owners in OWNERS.values() for name in owners)]
    async with AsyncExitStack() as stack:
        listeners = {}
        for user in users:
            listeners[user] = Listener(await stack.enter_async_context(client(brokers, user)))
            for wanted in (f"{topics.ROOT}/#", "$SYS/#", "#"):
                await listeners[user].client.subscribe(wanted, qos=1)
        await bridged(listeners, rows)
        for user, listener in listeners.items():
            for row in rows:
                await refusable(listener.client.publish(row.name, user, qos=1))
            mine = next(row for row in rows if row.publisher == user)
            await listener.client.publish(mine.name, f"{user} has tried", qos=1)
            await listeners[mine.subscriber].until((mine.name, f"{user} has tried"))
        for user in users:
            row = next(row for row in rows if row.subscriber == user)
            await listeners[row.publisher].client.publish(row.name, "end", qos=1)
            await listeners[user].until((row.name, "end"))
    given = {user: {pair for pair in listener.given if pair[1] in listeners} for user, listener in listeners.items()}
    wanted_of = {user: {(row.name, row.publisher) for row in rows if row.subscriber == user} for user in users}
    with capsys.disabled():
        show(rows, users, given)
    assert given == wanted_of


async def test_nobody_can_take_a_gateway_s_place(brokers: FleetBrokers) -> None:
    """A client id of another's choosing must not end anybody's connection: not a gateway's, not a stranger's."""
    async with brokers.gateway("gw-a", identifier="whatever") as victim, brokers.worker() as worker:
        await worker.subscribe(f"{topics.ROOT}/#", qos=1)
        async with brokers.gateway("gw-b", identifier="gw-a") as other, brokers.claimant("gw-a") as stranger:
            await other.publish(topics.up("gw-b", "ledger"), b"b", qos=1)
            await refusable(stranger.publish(topics.up("gw-a", "ledger"), b"stranger", qos=1))
            await victim.publish(topics.up("gw-a", "ledger"), b"a", qos=1)
            heard = {(await anext(worker.messages)).payload for _ in range(2)}
    assert heard == {b"a", b"b"}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_old_tls_is_refused(brokers: FleetBrokers, version: ssl.TLSVersion) -> None:
    """TLS before 1.2 has known weaknesses; a broker must not fall back to it."""
    for port in (brokers.cloud.port, brokers.claims.port):
        context = brokers.context("gw-a")
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLS"):
            context.minimum_version = context.maximum_version = version
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def test_without_a_certificate_or_with_a_stranger_s_nobody_connects(
    brokers: FleetBrokers, tmp_path: Path
) -> None:
    """The gateways' listener takes certificates of our authority alone; a broker's own certificate is none of those."""
    stranger = brokers.context()
    stranger.load_cert_chain(str(FleetBrokers(tmp_path).identity("gw-a")[0]))
    key, certificate = brokers.authority.server(["gw-a"])
    (tmp_path / "server").write_bytes(key + certificate)
    server = brokers.context()
    server.load_cert_chain(str(tmp_path / "server"))
    for context in (brokers.context(), stranger, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", brokers.cloud.port, ssl=context)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await reader.readexactly(1)
        writer.transport.abort()


async def test_a_worker_needs_its_password(brokers: FleetBrokers) -> None:
    """The workers' listener knows passwords only; without one even a gateway's certificate would not help."""
    for user, password in ((None, None), ("ingest", "wrong"), ("gw-a", None)):
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client("127.0.0.1", brokers.worker_port, username=user, password=password):
                pass


async def refusable(publishing: Awaitable[None]) -> None:
    """A publish that the broker may refuse; what counts is whether it arrives."""
    with contextlib.suppress(aiomqtt.MqttError):
        await publishing


async def bridged(listeners: dict[str, Listener], rows: list[Topic]) -> None:
    """Wait until the bridge between the two brokers carries claims in both directions."""
    up = next(row for row in rows if row.publisher in CLAIMANTS)
    down = next(row for row in rows if row.subscriber in CLAIMANTS)
    for row in (up, down):
        async with asyncio.timeout(30):
            while (row.name, "hello") not in listeners[row.subscriber].given:
                await listeners[row.publisher].client.publish(row.name, "hello", qos=1)
                try:
                    async with asyncio.timeout(0.3):
                        await listeners[row.subscriber].until((row.name, "hello"))
                except TimeoutError:
                    continue


def show(rows: list[Topic], users: list[str], given: dict[str, set[tuple[str, str]]]) -> None:
    """Who may publish (p) and who is given (s) what was published by the right one; `.` is refused, `!` is wrong."""
    width = max(len(row.name) for row in rows)
    print(f"\n{'topic':<{width}}  " + "  ".join(f"{user:<8}" for user in users))  # noqa: T201 - the matrix
    for row in rows:
        cells = []
        for user in users:
            sent = any((row.name, user) in pairs for pairs in given.values())
            got = any(name == row.name for name, _ in given[user])
            wrong = sent != (row.publisher == user) or got != (row.subscriber == user)
            cells.append(("p" if sent else "") + ("s" if got else "") + ("!" if wrong else "") or ".")
        print(f"{row.name:<{width}}  " + "  ".join(f"{cell:<8}" for cell in cells))  # noqa: T201 - the matrix

"""Every topic of the cloud's table, tried by every role in both directions on real brokers over TLS."""

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import aiomqtt
import pytest

from testbed.brokers import FleetBrokers
from tests.broker_config.clients import Listener, Topic
from tests.broker_config.matrix import CLAIMANTS, attempt, refusable, show, wanted
from wire_protocol import topics
from wire_protocol.names import INGEST_USER

pytestmark = [pytest.mark.services]


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetBrokers]:
    with FleetBrokers(tmp_path_factory.mktemp("brokers")) as made:
        yield made


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
    given = await attempt(lambda user: client(brokers, user), bridged)
    with capsys.disabled():
        show(given)
    assert given == wanted()


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

    async def refused(user: str | None, password: str | None) -> None:
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client("127.0.0.1", brokers.worker_port, username=user, password=password):
                pass

    await asyncio.gather(refused(None, None), refused("ingest", "wrong"), refused("gw-a", None))


async def bridged(listeners: dict[str, Listener], rows: list[Topic]) -> None:
    """Wait until the bridge between the two brokers carries claims in both directions."""
    up = next(row for row in rows if row.publisher in CLAIMANTS)
    down = next(row for row in rows if row.subscriber in CLAIMANTS)
    for row in (up, down):
        async with asyncio.timeout(60):
            while (row.name, "hello") not in listeners[row.subscriber].given:
                await listeners[row.publisher].client.publish(row.name, "hello", qos=1)
                try:
                    async with asyncio.timeout(0.3):
                        await listeners[row.subscriber].until((row.name, "hello"))
                except TimeoutError:
                    continue

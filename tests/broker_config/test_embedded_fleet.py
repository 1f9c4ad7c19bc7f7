"""The embedded broker with certificates: the same rules as the fleet's Mosquittos, tried with real clients over TLS."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt
import pytest

from broker_config import passwords
from broker_config.embedded import admission, listeners
from broker_config.embedded.broker import EmbeddedBroker
from broker_config.errors import InvalidConfig
from broker_config.mosquitto import TlsFiles
from cloud_identity import certificates
from cloud_identity.authority import Authority
from cloud_identity.certificates import Revoked
from cloud_ingest.transport.eviction import evict
from tests.broker_config.clients import HOST, PromptClient
from tests.broker_config.matrix import CLAIMANTS, attempt, show, wanted
from wire_protocol import topics
from wire_protocol.names import INGEST_USER
from wire_protocol.topics import Channel

SECRET = "correct-horse-battery"


@dataclass
class Fleet:
    """An embedded broker with the fleet's three doors, and what its clients prove themselves with."""

    folder: Path
    authority: Authority
    broker: EmbeddedBroker

    @property
    def crl(self) -> Path:
        return self.folder / "crl.pem"

    def listeners(self) -> list[listeners.Listener]:
        tls = TlsFiles(
            cafile=self.authority.bundle, certfile=self.folder / "server.pem", keyfile=self.folder / "server.key"
        )
        return listeners.fleet(tls, self.crl, {claim: passwords.hashed(SECRET) for claim in CLAIMANTS})

    def context(self, name: str | None = None, *, authority: Authority | None = None) -> ssl.SSLContext:
        """TLS for a client: with a certificate of that name, of our authority or another's."""
        context = ssl.create_default_context(cafile=str(self.authority.bundle))
        if name is not None:
            context.load_cert_chain(self.identity(name, authority or self.authority))
        return context

    def identity(self, name: str, authority: Authority) -> Path:
        """A file with a key and its certificate, made once."""
        signer = authority.current()
        file = self.folder / f"{name}-{signer.key_id}.pem"
        if not file.exists():
            key = certificates.new_key()
            made = certificates.client_certificate(
                signer.key, signer.certificate, key.public_key(), name, now=datetime.now(UTC), days=1
            )
            file.write_bytes(certificates.key_pem(key) + certificates.pem([made]).encode())
        return file

    def revoked(self, name: str) -> Revoked:
        """The line that revokes a name's certificate."""
        found = certificates.read_chain(self.identity(name, self.authority).read_bytes().split(b"KEY-----\n")[2])[0]
        return Revoked(certificates.issuer_id(found), found.serial_number, datetime.now(UTC))

    async def hand_over(self, *revoked: Revoked) -> None:
        """Give the broker a new revocation list."""
        self.crl.write_bytes(self.authority.write_crl(revoked).read_bytes())
        await self.broker.open(self.listeners())

    def client(self, user: str, **options: object) -> aiomqtt.Client:
        """The client of anybody of the matrix."""
        if user in CLAIMANTS:
            return self._client(listeners.CLAIMS, None, username=user, password=SECRET, **options)
        return self._client(listeners.WORKERS if user == INGEST_USER else listeners.GATEWAYS, user, **options)

    def _client(self, listener: str, name: str | None, **options: object) -> aiomqtt.Client:
        chosen = {"identifier": f"any-{name}", "tls_context": self.context(name), "timeout": 5.0} | options
        return PromptClient(HOST, self.broker.port_of(listener), **chosen)  # type: ignore[arg-type]

    async def is_shut_out(self, listener: str, context: ssl.SSLContext | None, **options: object) -> bool:
        """Whether a connection fails, rather than its first packet being answered."""
        try:
            async with self._client(listener, None, tls_context=context, **options):
                return False
        except aiomqtt.MqttError:
            return True


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    authority = Authority.create(tmp_path / "ca", "Stocktide test")
    key, certificate = authority.server([HOST])
    (tmp_path / "server.key").write_bytes(key)
    (tmp_path / "server.pem").write_bytes(certificate)
    made = Fleet(tmp_path, authority, EmbeddedBroker())
    made.crl.write_bytes(authority.write_crl([]).read_bytes())
    made.broker = EmbeddedBroker(given=made.listeners())
    async with made.broker:
        yield made


async def test_each_role_reaches_what_the_table_says_and_nothing_else(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariant I5 where the demo runs: gateways and workers by certificate, claims by secret, in both directions."""
    given = await attempt(fleet.client)
    with capsys.disabled():
        show(given)
    assert given == wanted()


async def test_without_a_certificate_of_ours_nobody_gets_past_the_handshake(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No certificate, another authority's in the right name, a broker's own, an authority's name: none is a gateway."""
    monkeypatch.setattr(admission, "CONNECT_S_MAX", 3600.0)  # who is let in and says nothing is not ended for that
    other = Authority.create(tmp_path / "other", "Stocktide test")
    server = fleet.context()
    server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    for listener in (listeners.GATEWAYS, listeners.WORKERS):
        for context in (fleet.context(), fleet.context("gw-a", authority=other), server):
            reader, writer = await asyncio.open_connection(HOST, fleet.broker.port_of(listener), ssl=context)
            async with asyncio.timeout(60):
                with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1)
            writer.transport.abort()
        assert await fleet.is_shut_out(listener, None)  # not even TLS
    assert not await fleet.is_shut_out(listeners.GATEWAYS, fleet.context("gw-a"))


async def test_each_door_takes_its_own_kind_only(fleet: Fleet) -> None:
    """A gateway is no worker, a worker no gateway; a password is no certificate and a certificate no claim."""
    assert await fleet.is_shut_out(listeners.WORKERS, fleet.context("gw-a"))
    assert await fleet.is_shut_out(listeners.GATEWAYS, fleet.context(INGEST_USER))
    assert await fleet.is_shut_out(listeners.GATEWAYS, fleet.context("Not A Name"))
    assert await fleet.is_shut_out(listeners.CLAIMS, fleet.context("gw-a"))
    for user, password in ((None, None), (CLAIMANTS[0], "wrong"), ("c1a1m00z", SECRET), (INGEST_USER, SECRET)):
        assert await fleet.is_shut_out(listeners.CLAIMS, fleet.context(), username=user, password=password)


async def test_a_claim_named_as_a_gateway_is_no_gateway(fleet: Fleet) -> None:
    """Claims and gateways have names of one shape; only the door says which of the two somebody is."""
    claim, worker = CLAIMANTS[0], fleet.client(INGEST_USER)
    async with worker, fleet.client(claim) as stranger:
        await worker.subscribe(f"{topics.ROOT}/#", qos=1)
        await stranger.publish(topics.up(claim, "ledger"), b"a frame", qos=1)
        await stranger.publish(topics.claim(claim, Channel.CLAIM_REQUEST), b"a claim", qos=1)
        async with asyncio.timeout(60):
            assert (await anext(worker.messages)).payload == b"a claim"
    for will in (topics.up(claim, "ledger"), topics.claim(CLAIMANTS[1], Channel.CLAIM_REQUEST)):
        with pytest.raises(aiomqtt.MqttError):
            await fleet.client(claim, will=aiomqtt.Will(will, b"gone", qos=1)).__aenter__()


@pytest.mark.parametrize("clean", [True, False])
async def test_nobody_can_take_a_gateway_s_place(fleet: Fleet, *, clean: bool) -> None:
    """A client id of another's choosing must neither end a gateway's connection nor inherit its session."""
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(fleet.client(INGEST_USER))
        victim = await stack.enter_async_context(fleet.client("gw-a", identifier="gw-a", clean_session=False))
        await worker.subscribe(f"{topics.ROOT}/#", qos=1)
        await victim.subscribe(topics.down_filter("gw-a"), qos=1)
        other = await stack.enter_async_context(fleet.client("gw-b", identifier="gw-a", clean_session=clean))
        await stack.enter_async_context(fleet.client(CLAIMANTS[0], identifier="gw-a", clean_session=clean))
        await other.publish(topics.up("gw-a", "ledger"), b"forged", qos=1)
        for name, client in (("gw-b", other), ("gw-a", victim)):
            await client.publish(topics.up(name, "ledger"), name, qos=1)
        async with asyncio.timeout(60):
            assert [(await anext(worker.messages)).payload for _ in range(2)] == [b"gw-b", b"gw-a"]
            await worker.publish(topics.link("gw-a", Channel.ACK), b"for a", qos=1)
            assert (await anext(victim.messages)).payload == b"for a"


async def test_a_revoked_gateway_is_cut_off_and_kept_out(fleet: Fleet) -> None:
    """The list keeps it out, the workers' takeover ends what it has open; others are not disturbed by either."""
    ca_file, key_file = str(fleet.authority.bundle), str(fleet.identity(INGEST_USER, fleet.authority))
    url = f"mqtts://{HOST}:{fleet.broker.port_of(listeners.WORKERS)}"
    async with AsyncExitStack() as stack:
        honest = await stack.enter_async_context(fleet.client("gw-b"))
        thief = fleet.client("gw-a")
        await thief.__aenter__()
        await fleet.hand_over(fleet.revoked("gw-a"))
        assert await fleet.is_shut_out(listeners.GATEWAYS, fleet.context("gw-a"))
        await thief.publish(topics.up("gw-a", "ledger"), b"still there", qos=1)  # a list ends no connection
        await evict(url, "gw-a", ca_file=ca_file, cert_file=key_file, key_file=key_file, mqtt_5=False, times=1)
        with pytest.raises(aiomqtt.MqttError):
            async with asyncio.timeout(60):
                await anext(thief.messages)
        await honest.publish(topics.up("gw-b", "ledger"), b"as before", qos=1)
        assert await fleet.is_shut_out(listeners.GATEWAYS, fleet.context("gw-a"))
    assert not await fleet.is_shut_out(listeners.GATEWAYS, fleet.context("gw-b"))


async def test_a_list_that_cannot_be_read_changes_nothing(fleet: Fleet) -> None:
    """A broker that is told to read a half-written file must go on as it was, with the list before."""
    await fleet.hand_over(fleet.revoked("gw-a"))
    fleet.crl.write_bytes(b"half")
    with pytest.raises(InvalidConfig):
        await fleet.broker.open(fleet.listeners())
    assert await fleet.is_shut_out(listeners.GATEWAYS, fleet.context("gw-a"))
    assert not await fleet.is_shut_out(listeners.GATEWAYS, fleet.context("gw-b"))


@pytest.mark.bound("broker_config.limits.EMBEDDED_CONNECTIONS_MAX")
async def test_all_doors_together_have_one_bound_of_connections(fleet: Fleet) -> None:
    """Each door had room of its own, and a connection that never ended its TLS handshake was not counted at all."""
    names = [listeners.GATEWAYS, listeners.CLAIMS, listeners.WORKERS]
    async with EmbeddedBroker(given=fleet.listeners(), connections_max=3) as broker:

        async def connect(listener: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection(HOST, broker.port_of(listener))

        async def is_turned_away(listener: str) -> bool:
            reader, writer = await connect(listener)
            try:
                async with asyncio.timeout(0.5):
                    return not await reader.read(1)
            except ConnectionResetError:
                return True
            except TimeoutError:
                return False
            finally:
                writer.transport.abort()

        silent = [await connect(listener) for listener in names]
        for listener in names:
            assert await is_turned_away(listener)
        _, left = silent.pop()
        left.transport.abort()
        async with asyncio.timeout(10):
            while await is_turned_away(listeners.GATEWAYS):
                pass
        for _, writer in silent:
            writer.transport.abort()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_old_tls_is_refused(fleet: Fleet, version: ssl.TLSVersion) -> None:
    """TLS before 1.2 has known weaknesses; a broker must not fall back to it."""
    for listener in (listeners.GATEWAYS, listeners.CLAIMS, listeners.WORKERS):
        context = fleet.context("gw-a")
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLS"):
            context.minimum_version = context.maximum_version = version
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(HOST, fleet.broker.port_of(listener), ssl=context)

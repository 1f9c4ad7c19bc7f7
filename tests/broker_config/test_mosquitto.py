"""Rendered configuration in a real Mosquitto: it starts, and it lets each role do what the table says and no more."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import aiomqtt
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from broker_config import passwords
from broker_config.errors import InvalidConfig, UnsafeConfig
from broker_config.limits import BrokerLimits
from broker_config.mosquitto import ACL_FILE, CONFIG_FILE, PASSWORD_FILE, Auth, MosquittoConfig, TlsFiles, render
from broker_config.policy import SERVICE_USER, Side
from testbed.services import PrivateBroker
from tests.broker_config.clients import HOST, Certificates, all_topics, expected, try_everything, users
from wire_protocol.topics import RULES, Channel

MakeBroker = Callable[..., PrivateBroker]
SECRET = "correct-horse-battery"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def _rendered(
    side: Side, auth: Auth, *, certificates: Certificates | None = None, **limits: int
) -> Callable[[int, Path], str]:
    """What PrivateBroker asks for: the text of mosquitto.conf, with the other files written beside it."""

    def config(port: int, directory: Path) -> str:
        tls = _server_files(certificates, directory) if certificates else None
        bounds = BrokerLimits.for_side(side, **limits)
        settings = MosquittoConfig(side=side, auth=auth, directory=directory, port=port, tls=tls, limits=bounds)
        files = render(settings)
        for name, text in files.items():
            (directory / name).write_text(text)
        passwords.write(directory / PASSWORD_FILE, {user: passwords.hashed(SECRET) for user in users(side)})
        return files[CONFIG_FILE]

    return config


def _server_files(certificates: Certificates, directory: Path) -> TlsFiles:
    certfile, keyfile = certificates.issue("broker", server=True)
    files = TlsFiles(cafile=directory / "ca.crt", certfile=directory / "broker.crt", keyfile=directory / "broker.key")
    for source, target in ((certificates.cafile, files.cafile), (certfile, files.certfile), (keyfile, files.keyfile)):
        target.write_bytes(source.read_bytes())
    return files


@pytest.mark.parametrize("side", Side)
async def test_with_passwords_each_role_is_confined(side: Side, private_broker: MakeBroker) -> None:
    """Invariant I5: a gateway speaks and hears only for itself, a device too, in both directions."""
    broker = private_broker(_rendered(side, Auth.PASSWORD))

    def connect(user: str) -> aiomqtt.Client:
        return aiomqtt.Client(HOST, broker.port, username=user, password=SECRET, identifier=f"c-{user}")

    assert await try_everything(side, connect) == expected(side)


@pytest.mark.parametrize("side", Side)
async def test_with_certificates_each_role_is_confined(
    side: Side, private_broker: MakeBroker, certificates: Certificates
) -> None:
    """The user is the certificate's common name, whatever user name the client claims."""
    broker = private_broker(_rendered(side, Auth.CERTIFICATE, certificates=certificates))

    def connect(user: str) -> aiomqtt.Client:
        return aiomqtt.Client(
            HOST,
            broker.port,
            username=SERVICE_USER[side],
            identifier=f"c-{user}",
            tls_context=certificates.context(user),
        )

    assert await try_everything(side, connect) == expected(side)


@pytest.mark.parametrize(("user", "password"), [("gw-a", "wrong"), ("gw-c", SECRET), ("gw-a", ""), (None, None)])
async def test_a_wrong_password_is_refused(private_broker: MakeBroker, user: str | None, password: str | None) -> None:
    """Nobody gets in without the password of a user that exists."""
    broker = private_broker(_rendered(Side.CLOUD, Auth.PASSWORD))
    with pytest.raises(aiomqtt.MqttError, match=r"[Nn]ot authori[sz]ed"):
        async with aiomqtt.Client(HOST, broker.port, username=user, password=password, identifier="c"):
            pass


async def test_a_stranger_s_certificate_is_refused(
    private_broker: MakeBroker, certificates: Certificates, tmp_path: Path
) -> None:
    """No certificate, or one of another authority, must not get in."""
    broker = private_broker(_rendered(Side.CLOUD, Auth.CERTIFICATE, certificates=certificates))
    nobody = certificates.context(None)
    stranger = certificates.context(None)
    stranger.load_cert_chain(*Certificates(tmp_path).issue("gw-a"))
    for context in (nobody, stranger):
        reader, writer = await asyncio.open_connection(HOST, broker.port, ssl=context)
        with pytest.raises(ssl.SSLError, match=r"CERTIFICATE_REQUIRED|UNKNOWN_CA"):
            await reader.read()
        writer.transport.abort()


@pytest.mark.parametrize("side", Side)
async def test_an_anonymous_broker_lets_everybody_in(side: Side, private_broker: MakeBroker) -> None:
    """For a demo on one machine nothing has to be set up."""
    broker = private_broker(_rendered(side, Auth.ANONYMOUS))
    topic = all_topics(side)[0].name
    async with aiomqtt.Client(HOST, broker.port, identifier="c") as client:
        await client.subscribe(topic, qos=1)
        await client.publish(topic, b"scan", qos=1)
        assert (await anext(client.messages)).payload == b"scan"


async def test_a_forbidden_publish_fails_over_mqtt_5(private_broker: MakeBroker) -> None:
    """A PUBACK with a reason code of 0x80 or above is a failed publish: the broker must send one."""
    broker = private_broker(_rendered(Side.CLOUD, Auth.PASSWORD))
    reasons: list[int] = []
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="c", protocol=paho.MQTTv5)
    client.username_pw_set("gw-a", SECRET)
    client.on_publish = lambda _client, _data, _id, reason, _properties: reasons.append(reason.value)
    client.connect(HOST, broker.port)
    client.loop_start()
    for owner in ("gw-a", "gw-b"):
        topic = next(t.name for t in all_topics(Side.CLOUD) if owner in t.name and t.rule is RULES[Channel.LEDGER])
        client.publish(topic, b"frame", qos=1).wait_for_publish(timeout=60)
    client.disconnect()
    client.loop_stop()
    assert [reason >= 0x80 for reason in reasons] == [False, True]


@pytest.mark.bound("broker.packet_bytes_max")
async def test_a_packet_over_the_limit_ends_the_connection(private_broker: MakeBroker) -> None:
    """One client must not fill the memory of a small gateway."""
    broker = private_broker(_rendered(Side.GATEWAY, Auth.PASSWORD, packet_bytes_max=2048))
    topic = next(t.name for t in all_topics(Side.GATEWAY) if t.publisher == "scale_b")
    client = aiomqtt.Client(HOST, broker.port, username="scale_b", password=SECRET, identifier="c")
    with pytest.raises(aiomqtt.MqttError):  # noqa: PT012 - the first statement shows that a smaller packet passes
        async with client:
            await client.publish(topic, b"x" * 1900, qos=1)
            async with client:
                await anext(client.messages)


async def test_a_gateway_s_broker_keeps_events_for_its_agent_over_a_power_cut(private_broker: MakeBroker) -> None:
    """An agent that restarts after the broker was killed finds the events that were saved while it was away."""
    broker = private_broker(_rendered(Side.GATEWAY, Auth.PASSWORD))
    topic = next(t.name for t in all_topics(Side.GATEWAY) if t.publisher == "scale_b")

    def agent() -> aiomqtt.Client:
        return aiomqtt.Client(
            HOST, broker.port, username="agent", password=SECRET, identifier="agent", clean_session=False
        )

    async with agent() as client:
        await client.subscribe(topic, qos=1)
    async with aiomqtt.Client(HOST, broker.port, username="scale_b", password=SECRET, identifier="c") as device:
        await device.publish(topic, b"scan", qos=1)
    broker.save()
    broker.kill()
    broker.start()
    async with agent() as client:
        assert (await anext(client.messages)).payload == b"scan"


def test_a_broker_for_everybody_listens_on_loopback_only() -> None:
    """The one way to an open broker on a network is closed."""
    for address in ("0.0.0.0", "10.0.0.1", "::", "broker.example"):
        with pytest.raises(UnsafeConfig):
            MosquittoConfig(side=Side.CLOUD, auth=Auth.ANONYMOUS, directory=Path("/d"), port=1883, address=address)
    for address in ("127.0.0.1", "::1", "localhost"):
        MosquittoConfig(side=Side.CLOUD, auth=Auth.ANONYMOUS, directory=Path("/d"), port=1883, address=address)


def test_certificates_need_files_and_passwords_have_an_acl() -> None:
    """A configuration that Mosquitto would refuse, or that would grant everything, is never rendered."""
    with pytest.raises(InvalidConfig):
        MosquittoConfig(side=Side.CLOUD, auth=Auth.CERTIFICATE, directory=Path("/d"), port=8883)
    config = MosquittoConfig(side=Side.CLOUD, auth=Auth.PASSWORD, directory=Path("/d"), port=1883)
    files = render(config)
    assert f"acl_file /d/{ACL_FILE}" in files[CONFIG_FILE].splitlines()
    assert "allow_anonymous false" in files[CONFIG_FILE].splitlines()
    assert "#" not in "".join(line for line in files[ACL_FILE].splitlines() if not line.startswith("#"))


async def test_a_device_cannot_take_another_clients_place(private_broker: MakeBroker) -> None:
    """One that connects again and again as the agent's client id had silenced its gateway for every device."""
    broker = private_broker(_rendered(Side.GATEWAY, Auth.PASSWORD))
    topic = next(t.name for t in all_topics(Side.GATEWAY) if t.publisher == "scale_b")

    def client(user: str, client_id: str) -> aiomqtt.Client:
        return aiomqtt.Client(HOST, broker.port, username=user, password=SECRET, identifier=client_id)

    async with client("agent", "stocktide-agent-gw-1") as agent:
        await agent.subscribe(topic, qos=1)
        for client_id in ("stocktide-agent-gw-1", "agent"):
            async with client("scanner-A.1", client_id) as evil:
                await evil.publish("stocktide/v1/dev/scanner-A.1/up/scan", b"x", qos=1)
        async with client("scale_b", "scale_b") as device:
            await device.publish(topic, b"scan", qos=1)
        assert (await anext(agent.messages)).payload == b"scan"


@pytest.mark.parametrize("line_end", ["\n", "\r", "\0", "\x0b", "\x85", "\u2028", "\u202e"])
@pytest.mark.parametrize("where", ["address", "directory", "data", "cafile", "certfile", "keyfile"])
def test_no_value_can_become_a_line_of_the_configuration(where: str, line_end: str) -> None:
    """The first of two equal lines wins in Mosquitto: `allow_anonymous true` in an address opened the broker."""
    evil = f"/x{line_end}allow_anonymous true{line_end}"
    files = {name: Path(evil if where == name else f"/{name}") for name in ("cafile", "certfile", "keyfile")}
    config = MosquittoConfig(
        side=Side.CLOUD,
        auth=Auth.CERTIFICATE,
        directory=Path(evil if where == "directory" else "/etc"),
        data_directory=Path(evil if where == "data" else "/var"),
        address=evil if where == "address" else "127.0.0.1",
        port=1883,
        tls=TlsFiles(**files),
    )
    with pytest.raises(InvalidConfig, match="cannot stand in a configuration"):
        render(config)

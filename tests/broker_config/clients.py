"""Real MQTT clients for the tests of broker configuration, and throw-away certificates."""

import asyncio
import ssl
import subprocess
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt

from broker_config.policy import SERVICE_USER, Side
from wire_protocol import topics
from wire_protocol.topics import TOPICS, Role, TopicRule

HOST = "127.0.0.1"
OWNERS: dict[Side, dict[str, tuple[str, ...]]] = {
    Side.CLOUD: {"{gateway}": ("gw-a", "gw-b"), "{claim}": ("claim-a",)},
    Side.GATEWAY: {"{device}": ("scanner-A.1", "scale_b")},
}
# Makes the client of one user, not yet connected.
Connect = Callable[[str], aiomqtt.Client]


@dataclass(frozen=True)
class Topic:
    """A concrete topic of the table, and the one user who may publish and subscribe."""

    name: str
    rule: TopicRule
    publisher: str
    subscriber: str


def users(side: Side) -> list[str]:
    return [SERVICE_USER[side], *(name for names in OWNERS[side].values() for name in names)]


def all_topics(side: Side) -> list[Topic]:
    """Every topic of every owner on one side, with who may use it: the table read a second time, independently."""
    found = []
    for placeholder, owners in OWNERS[side].items():
        for rule in (rule for rule in TOPICS if placeholder in rule.pattern):
            for owner in owners:
                shard = f"{topics.shard(owner):02x}"
                name = rule.pattern.replace(placeholder, owner).replace("{shard}", shard)
                service = SERVICE_USER[side]
                is_up = rule.publisher in {Role.GATEWAY, Role.CLAIMANT, Role.DEVICE}
                found.append(Topic(name, rule, owner if is_up else service, service if is_up else owner))
    return found


@dataclass
class Listener:
    """What one user has been given, in order."""

    client: aiomqtt.Client
    given: list[tuple[str, str]] = field(default_factory=list)

    async def until(self, end: tuple[str, str]) -> None:
        """Read on until a message (topic, text) has come."""
        async with asyncio.timeout(60):
            while end not in self.given:
                message = await anext(self.client.messages)
                assert isinstance(message.payload, bytes)
                self.given.append((message.topic.value, message.payload.decode()))


async def try_everything(side: Side, connect: Connect) -> dict[str, set[tuple[str, str]]]:
    """Let each user subscribe to everything and publish on every topic. Returns the (topic, sender)s each was given."""
    table = all_topics(side)
    async with AsyncExitStack() as stack:
        listeners = {}
        for user in users(side):
            listeners[user] = Listener(await stack.enter_async_context(connect(user)))
            await listeners[user].client.subscribe(f"{topics.ROOT}/#", qos=1)
        for user, listener in listeners.items():
            for topic in table:
                await listener.client.publish(topic.name, user, qos=1)
            # What one client publishes is handled in order, so after this all of its attempts have been.
            await _say(listeners, _first(table, "publisher", user), f"{user} has tried")
        for user in listeners:
            await _say(listeners, _first(table, "subscriber", user), "end")
    return {
        user: {(name, text) for name, text in listener.given if text in listeners}
        for user, listener in listeners.items()
    }


def expected(side: Side) -> dict[str, set[tuple[str, str]]]:
    """What `try_everything` must return."""
    table = all_topics(side)
    return {user: {(t.name, t.publisher) for t in table if t.subscriber == user} for user in users(side)}


async def _say(listeners: dict[str, Listener], topic: Topic, text: str) -> None:
    await listeners[topic.publisher].client.publish(topic.name, text, qos=1)
    await listeners[topic.subscriber].until((topic.name, text))


def _first(table: Iterable[Topic], side: str, user: str) -> Topic:
    return next(topic for topic in table if getattr(topic, side) == user)


class Certificates:
    """A certificate authority in a directory, made with the openssl program."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cafile = directory / "ca.crt"
        self._openssl("ca", "stocktide test authority", "-addext", "basicConstraints=critical,CA:TRUE")

    def issue(self, name: str, *, server: bool = False) -> tuple[Path, Path]:
        """The certificate and key files of a user or of the broker."""
        extra = ["-addext", f"subjectAltName=IP:{HOST}"] if server else []
        if not (self.directory / f"{name}.crt").exists():
            self._openssl(name, name, "-CA", str(self.cafile), "-CAkey", str(self.directory / "ca.key"), *extra)
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"

    def context(self, name: str | None) -> ssl.SSLContext:
        """What a client needs to connect as a user, or as nobody."""
        context = ssl.create_default_context(cafile=str(self.cafile))
        if name is not None:
            context.load_cert_chain(*self.issue(name))
        return context

    def _openssl(self, name: str, common_name: str, *options: str) -> None:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(self.directory / f"{name}.key"), "-out", str(self.directory / f"{name}.crt")]
        command = ["openssl", "req", "-x509", *key, *files, "-days", "2", "-subj", f"/CN={common_name}", *options]
        subprocess.run(command, check=True, capture_output=True)


class PromptClient(aiomqtt.Client):
    """A plain client; a connection that is closed before its answer is not waited for until a timeout."""

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError("closed without an answer"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

"""Every topic of the cloud's table, tried by every role in both directions: those who may, and those who may not."""

import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import aiomqtt

from tests.broker_config.clients import Connect, Listener, Topic
from wire_protocol import topics
from wire_protocol.names import INGEST_USER
from wire_protocol.topics import TOPICS, Role

OWNERS = {"{gateway}": ("gw-a", "gw-b"), "{claim}": ("c1a1m00a", "c1a1m00b")}
CLAIMANTS = OWNERS["{claim}"]
USERS = [INGEST_USER, *(name for owners in OWNERS.values() for name in owners)]
# Waits until what one publishes can reach the other, where that is not so from the start.
Prepare = Callable[[dict[str, Listener], list[Topic]], Awaitable[None]]


def table() -> list[Topic]:
    """Every concrete topic with the one who may publish and the one who may subscribe, read from the table again."""
    made = []
    for rule in TOPICS:
        for placeholder, owners in OWNERS.items():
            for owner in owners if placeholder in rule.pattern else ():
                shard = f"{topics.shard(owner):02x}"
                name = rule.pattern.replace(placeholder, owner).replace("{shard}", shard)
                up = rule.publisher in {Role.GATEWAY, Role.CLAIMANT}
                made.append(Topic(name, rule, owner if up else INGEST_USER, INGEST_USER if up else owner))
    return made


def wanted() -> dict[str, set[tuple[str, str]]]:
    """What `attempt` must return."""
    return {user: {(row.name, row.publisher) for row in table() if row.subscriber == user} for user in USERS}


async def attempt(connect: Connect, prepare: Prepare | None = None) -> dict[str, set[tuple[str, str]]]:
    """Let everybody subscribe to everything and publish everywhere. Returns the (topic, sender)s each was given.

    What counts is what is delivered: a broker may accept every subscription and filter at delivery.
    """
    rows = table()
    async with AsyncExitStack() as stack:
        listeners = {}
        for user in USERS:
            listeners[user] = Listener(await stack.enter_async_context(connect(user)))
            for everything in (f"{topics.ROOT}/#", "$SYS/#", "#"):
                await listeners[user].client.subscribe(everything, qos=1)
        if prepare is not None:
            await prepare(listeners, rows)
        for user, listener in listeners.items():
            for row in rows:
                await refusable(listener.client.publish(row.name, user, qos=1))
            mine = next(row for row in rows if row.publisher == user)
            await listener.client.publish(mine.name, f"{user} has tried", qos=1)
            await listeners[mine.subscriber].until((mine.name, f"{user} has tried"))
        for user in USERS:
            row = next(row for row in rows if row.subscriber == user)
            await listeners[row.publisher].client.publish(row.name, "end", qos=1)
            await listeners[user].until((row.name, "end"))
    return {user: {pair for pair in listener.given if pair[1] in listeners} for user, listener in listeners.items()}


async def refusable(publishing: Awaitable[None]) -> None:
    """A publish that the broker may refuse; what counts is whether it arrives."""
    with contextlib.suppress(aiomqtt.MqttError):
        await publishing


def show(given: dict[str, set[tuple[str, str]]]) -> None:
    """Who may publish (p) and who is given (s) what was published by the right one; `.` is refused, `!` is wrong."""
    rows, users = table(), USERS
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

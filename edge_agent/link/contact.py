"""One contact with the cloud: from the first status that is announced until the connection ends."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeAlias

import structlog

from mqtt_client import MessageTooLarge
from wire_protocol import topics
from wire_protocol.topics import RULES, Channel

log = structlog.get_logger("edge_agent.link.uplink")


class Publishing(Protocol):
    """A connection to the cloud's broker."""

    async def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """Publish, and wait until the broker has it."""


class Contact:
    """What the parts of the link publish on, and start tasks that end with it."""

    def __init__(self, gateway: str, connection: Publishing, tasks: asyncio.TaskGroup) -> None:
        self._gateway, self._connection, self._tasks = gateway, connection, tasks

    async def publish(self, channel: Channel, payload: bytes) -> None:
        """Publish on one of this gateway's topics, and wait until the broker has it.

        What the broker does not take for its size is named in the log, and ends no contact.
        """
        rule = RULES[channel]
        try:
            await self._connection.publish(topics.link(self._gateway, channel), payload, rule.qos, retain=rule.retain)
        except MessageTooLarge as error:
            log.error("message_too_large", channel=channel, reason=str(error), hint=error.hint)  # noqa: TRY400

    def start(self, task: Coroutine[Any, Any, None], name: str) -> None:
        """Run a task for the rest of the contact."""
        self._tasks.create_task(task, name=f"edge[{self._gateway}].{name}")


# Takes a payload of the cloud; what it waits for holds the contact's next message back.
Handler: TypeAlias = Callable[[Contact, bytes], Awaitable[None]]

"""Commands: sends what operators have given, stores what gateways reply.

Invariant: a command is sent until it is answered or expires; executing it once is the gateway's part.
"""

from collections.abc import Coroutine, Iterator
from typing import Any, Final

import structlog

from cloud_ingest.context import Context
from cloud_ingest.mailbox import Mailbox, WakeUp
from cloud_store.provisioning import commands
from cloud_store.provisioning.commands import UnreadableCommand
from wire_protocol import topics
from wire_protocol.messages import Reply
from wire_protocol.topics import Channel

AGAIN_S: Final = 15.0
BATCH: Final = 100
_LOG = structlog.get_logger()


class Commands:
    """Sends commands to the gateways of the shards that this worker serves."""

    def __init__(self, context: Context) -> None:
        self._context, self._database = context, context.database
        self._shards: frozenset[int] = frozenset()
        self._replies: Mailbox[tuple[str, str], Reply] = context.mailbox(
            "commands", context.settings.replies_waiting_max
        )
        self.wake = WakeUp("commands")

    def serve(self, shards: frozenset[int]) -> None:
        """Commands of these shards are sent from here."""
        self._shards = shards
        self.wake()

    def replied(self, gateway: str, reply: Reply, size_bytes: int) -> None:
        """A gateway has answered."""
        self._replies.put((gateway, reply.id), reply, size_bytes)

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.serve(self._replies, self._store_reply)
        yield self._context.serve(self.wake, self._send_due)

    async def _store_reply(self, key: tuple[str, str], reply: Reply) -> None:
        gateway, number = key
        if await self._database.run(commands.reply, gateway, reply):
            _LOG.info("command_answered", gateway=gateway, id=number, ok=reply.ok, reason=reply.reason)

    async def _send_due(self, _key: None, _value: None) -> None:
        while self._shards:
            due = await self._database.run(commands.due, self._shards, limit=BATCH, again_s=AGAIN_S)
            for sending in due.made:
                self._context.publish(topics.link(sending.gateway, Channel.COMMAND), sending.command.encode())
            if due.made:
                await self._database.run(commands.sent, due.made)
            self._context.unreadable("commands", due.unreadable)
            for row in due.unreadable:
                if isinstance(row.error, UnreadableCommand):
                    await self._database.run(commands.fail, row.error.number, row.error.reason)
            if due.total < BATCH:
                return

"""Commands: sends what operators have given, stores what gateways reply.

Invariant: a command is sent until it is answered or expires; carrying it out once is the gateway's part.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from cloud_ingest.settings import IngestSettings
from cloud_ingest.threads import uninterrupted
from cloud_ingest.waiting import Waiting
from cloud_store.base.errors import StoreError, Unstorable
from cloud_store.provisioning.commands import CommandStore
from wire_protocol import topics
from wire_protocol.messages import InvalidMessage, Reply
from wire_protocol.topics import Channel

RETRY_S: Final = 1.0
AGAIN_S: Final = 15.0
BATCH: Final = 100
_LOG = structlog.get_logger()


class Commands:
    """Sends commands to the gateways of the shards that this worker serves."""

    def __init__(self, settings: IngestSettings, store: CommandStore, publish: Callable[[str, bytes], None]) -> None:
        self._settings, self._store, self._publish = settings, store, publish
        self._shards: frozenset[int] = frozenset()
        self._replies: Waiting[tuple[str, str], Reply] = Waiting(
            messages_max=settings.status_waiting_max, bytes_max=settings.waiting_bytes_max
        )
        self._look = False
        self._work = asyncio.Event()

    def serve(self, shards: frozenset[int]) -> None:
        """Commands of these shards are sent from here."""
        self._shards = shards
        self.wake()

    def wake(self) -> None:
        """There may be something to send."""
        self._look = True
        self._work.set()

    def replied(self, gateway: str, reply: Reply, size: int = Reply.bytes_max) -> None:
        """A gateway has answered, in `size` bytes. What finds no room is sent again, because its command is."""
        if self._replies.put((gateway, reply.id), reply, size):
            self._work.set()

    async def run(self) -> None:
        """Send and store until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._store_replies()
                if self._replies:
                    self._work.set()
                if self._look:
                    self._look = False
                    await self._send_due()
            except StoreError as error:
                _LOG.warning("commands_failed", reason=str(error), hint=error.hint)
                self.wake()
                await asyncio.sleep(RETRY_S)

    async def _store_replies(self) -> None:
        # Those that are here now: one that replies without end must not keep the others from being sent theirs.
        for (gateway, number), reply in list(self._replies.items()):
            try:
                taken = await uninterrupted(lambda: self._store.reply(gateway, reply))  # noqa: B023 - awaited here
            except Unstorable as error:
                _LOG.warning("reply_dropped", gateway=gateway, id=number, reason=str(error))
                taken = False
            self._replies.discard((gateway, number), reply)
            if taken:
                _LOG.info("command_answered", gateway=gateway, id=number, ok=reply.ok, reason=reply.reason)

    async def _send_due(self) -> None:
        while self._shards:
            due = await uninterrupted(lambda: self._store.due(self._shards, limit=BATCH, again_s=AGAIN_S))
            if not due:
                return
            for gateway, command in due:
                self._publish(topics.link(gateway, Channel.COMMAND), command.encode())
            await uninterrupted(lambda: self._store.sent(due))  # noqa: B023 - awaited here
            if len(due) < BATCH:
                return


def decode(gateway: str, payload: bytes) -> Reply | None:
    """A reply, or None when it is none."""
    try:
        return Reply.decode(payload)
    except InvalidMessage as error:
        _LOG.warning("reply_refused", gateway=gateway, reason=str(error))
        return None

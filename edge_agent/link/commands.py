"""Commands of the cloud: looked up by name, carried out once although delivered twice, answered by id.

What changes the ledger does so in the transaction that notes the command as done. Everything else may be done again
after a crash in between without harm.

Invariant: an expired command is not carried out; an unknown one is answered, not ignored; a done one is answered as it
was the first time.
"""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import structlog

from edge_agent.errors import EdgeError, UnknownDevice
from edge_agent.ledger import database, queries, stock_digest
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.outbox import Outbox
from edge_agent.ledger.sql import statement
from edge_agent.link.contact import Contact
from edge_agent.provisioning import recounts, twin
from edge_agent.settings import EdgeSettings
from edge_agent.signals import Signals
from wire_protocol import commands
from wire_protocol.commands import Locate, OpenEpoch, ProveStock, Recount, Request, SetLogLevel
from wire_protocol.messages import Command, Reply
from wire_protocol.problems import REASON_CHARS_MAX
from wire_protocol.reasons import ForkCode
from wire_protocol.topics import Channel

COMMANDS_AT_ONCE_MAX: Final = 4
COMMANDS_WAITING_MAX: Final = 100
COMMANDS_REMEMBERED_MAX: Final = 1_000
DEAD_LETTERS_SHOWN: Final = 20

Result: TypeAlias = dict[str, Any]

log = structlog.get_logger("edge_agent.link.commands")


@dataclass(slots=True)
class Commands:
    """Executes commands on a ledger. A bounded number waits; the cloud sends again what is dropped beyond it.

    Args:
        ledger: the file.
        now_ms: the time that commands expire by.
        write: hands a write to the ledger's writer and waits for it.
        settings: part of diagnostics.
        signals: what is sent for commands that concern more than the ledger.
    """

    ledger: Path
    now_ms: Callable[[], int]
    write: Callable[[Callable[[Ledger], Any]], Awaitable[Any]]
    settings: EdgeSettings
    signals: Signals = field(default_factory=Signals)
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(COMMANDS_AT_ONCE_MAX))
    _waiting: int = 0
    _running: set[str] = field(default_factory=set)

    async def receive(self, contact: Contact, payload: bytes) -> None:
        """Part of `Uplink.on`."""
        command = Command.decode(payload)
        if self.take():
            contact.start(self._answer(contact, command), f"command.{command.name}")
        else:
            log.warning("command_dropped", command=command.name, id=command.id)

    async def _answer(self, contact: Contact, command: Command) -> None:
        reply = await self.execute(command)
        if reply is not None:
            await contact.publish(Channel.REPLY, reply.encode())

    def take(self) -> bool:
        """Whether there is room for one more command; then it must be carried out."""
        if self._waiting >= COMMANDS_WAITING_MAX:
            return False
        self._waiting += 1
        return True

    async def execute(self, command: Command) -> Reply | None:
        """Carry a command out and say what came of it; None while the same is under way."""
        try:
            if command.id in self._running:
                return None
            self._running.add(command.id)
            try:
                return await self._execute(command)
            finally:
                self._running.discard(command.id)
        finally:
            self._waiting -= 1

    async def _execute(self, command: Command) -> Reply:
        async with self._room:
            if (before := await asyncio.to_thread(self._before, command.id)) is not None:
                return before
            if self.now_ms() > command.expires_ms:
                return Reply(id=command.id, ok=False, reason="the command has expired")
            try:
                request = commands.parse(command.name, command.arguments)
                return await self._do(command.id, request)
            except (EdgeError, ValueError) as error:
                return Reply(id=command.id, ok=False, reason=str(error)[:REASON_CHARS_MAX])

    def _before(self, number: str) -> Reply | None:
        """The reply to a command that was done already."""
        with database.reading(self.ledger) as connection:
            row = connection.execute(statement("command_reply"), (number,)).fetchone()
        return None if row is None else Reply.decode(row[0].encode())

    async def _do(self, number: str, request: Request) -> Reply:
        if isinstance(request, ProveStock):
            # A question of the cloud to itself, many in a row, and harmless twice: it is not noted.
            return Reply(id=number, ok=True, result=await asyncio.to_thread(self._prove, request))
        if isinstance(request, Recount):
            return await self._note(number, partial(_recount, request))
        if isinstance(request, OpenEpoch):
            reply = await self._note(number, partial(_want_epoch, request))
            self.signals.epoch_requested.send()
            return reply
        result = await self._act(request)
        return await self._note(number, lambda _: result)

    async def _act(self, request: Request) -> Result:
        if isinstance(request, Locate):
            known = await asyncio.to_thread(self._known, request.device)
            if not known:
                raise UnknownDevice(f"device {request.device} is not registered at this gateway")
            self.signals.locate_requested.send(request.device, request.seconds)
            return {"device": request.device, "seconds": request.seconds}
        if isinstance(request, SetLogLevel):
            self.signals.log_level_requested.send(request.level, request.minutes)
            return {"level": request.level, "minutes": request.minutes}
        if isinstance(request, commands.SyncNow):
            self.signals.sync_requested.send()
            return {}
        return await asyncio.to_thread(self._diagnose)

    async def _note(self, number: str, run: Callable[[Ledger], Result]) -> Reply:
        """Do something to the ledger and note the command as done, in one transaction."""

        def once(ledger: Ledger) -> Reply:
            row = ledger.connection.execute(statement("command_reply"), (number,)).fetchone()
            if row is not None:
                return Reply.decode(row[0].encode())
            reply = Reply(id=number, ok=True, result=run(ledger))
            ledger.connection.execute(statement("note_command"), (number, self.now_ms(), reply.encode().decode()))
            ledger.connection.execute(statement("trim_commands"), (COMMANDS_REMEMBERED_MAX,))
            return reply

        reply: Reply = await self.write(once)
        return reply

    def _known(self, device: str) -> bool:
        with database.reading(self.ledger) as connection:
            return connection.execute(statement("device_known"), (device,)).fetchone() is not None

    def _prove(self, request: ProveStock) -> Result:
        question = request.question()
        with database.reading(self.ledger) as connection:
            return stock_digest.answer(connection, question).model_dump(mode="json")

    def _diagnose(self) -> Result:
        disk = shutil.disk_usage(self.ledger.parent)
        with database.reading(self.ledger) as connection:
            status = queries.status(connection, self.ledger)
            letters = connection.execute(statement("dead_letters"), {"limit": DEAD_LETTERS_SHOWN}).fetchall()
            return {
                "status": json.loads(json.dumps(status, default=str)),
                "settings": self.settings.public(),
                "twin": twin.version(connection),
                "disk": {"free_bytes": disk.free, "total_bytes": disk.total},
                "dead_letters": [{"at_ms": row[1], "topic": row[2], "reason": row[4]} for row in letters],
            }


def _recount(request: Recount, ledger: Ledger) -> Result:
    return {"to_count": recounts.ask(ledger, request.location, request.sku, request.note)}


def _want_epoch(request: OpenEpoch, ledger: Ledger) -> Result:
    Outbox(ledger).forked("ledger", ForkCode.REQUESTED.says(f"the cloud asked for a new epoch: {request.reason}"))
    return {"epoch": ledger.epoch}

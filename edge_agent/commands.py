"""Commands of the cloud: looked up by name, carried out in a thread of their own, answered by id.

All there are so far only read, so that a command delivered twice does no harm.

Invariant: an expired command is not carried out; an unknown one is answered, not ignored.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from edge_agent import database, stock_proof
from edge_agent.errors import EdgeError
from wire_protocol.messages import PROVE_STOCK, Command, Reply
from wire_protocol.proof import ProofQuestion

COMMANDS_AT_ONCE_MAX: Final = 4
COMMANDS_WAITING_MAX: Final = 100

Arguments = Mapping[str, str | int | bool]


def _prove_stock(ledger: Path, arguments: Arguments) -> dict[str, Any]:
    question = ProofQuestion(prefixes=tuple(str(arguments["prefixes"]).split(",")))
    with closing(database.open_reader(ledger)) as connection:
        return stock_proof.answer(connection, question).model_dump(mode="json")


_COMMANDS: Final[Mapping[str, Callable[[Path, Arguments], dict[str, Any]]]] = {PROVE_STOCK: _prove_stock}


class Commands:
    """Carries commands out on a ledger; so many wait, and what comes beyond is dropped: the cloud asks again."""

    def __init__(self, ledger: Path, now_ms: Callable[[], int]) -> None:
        self._ledger, self._now_ms = ledger, now_ms
        self._room = asyncio.Semaphore(COMMANDS_AT_ONCE_MAX)
        self._waiting = 0

    def take(self) -> bool:
        """Whether there is room for one more command; then it must be carried out."""
        if self._waiting >= COMMANDS_WAITING_MAX:
            return False
        self._waiting += 1
        return True

    async def carry_out(self, command: Command) -> Reply:
        """Carry a command out and say what came of it."""
        try:
            return await self._carry_out(command)
        finally:
            self._waiting -= 1

    async def _carry_out(self, command: Command) -> Reply:
        run = _COMMANDS.get(command.name)
        if run is None:
            return Reply(id=command.id, ok=False, reason=f"there is no command {command.name}")
        async with self._room:
            if self._now_ms() > command.expires_ms:
                return Reply(id=command.id, ok=False, reason="the command has expired")
            try:
                result = await asyncio.to_thread(run, self._ledger, command.arguments)
            except (EdgeError, KeyError, ValueError) as error:
                return Reply(id=command.id, ok=False, reason=f"{type(error).__name__}: {error}"[:200])
        return Reply(id=command.id, ok=True, result=result)

"""Commands to gateways: given by operators, sent by workers, answered by gateways.

Invariant: a reply is taken from the gateway that was asked, and once.
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from pydantic import ValidationError

from cloud_store.base import audit_log, sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import UnknownName
from cloud_store.base.rows import ReadRows, read_each
from cloud_store.merge.dead_letters import printable, storable
from wire_protocol import commands, names
from wire_protocol.messages import Command, Reply
from wire_protocol.problems import first_problem

_SQL: Final = sql.load("commands")


class CommandState(StrEnum):
    """Where a command is, as `commands.sql` says it; the last three are final."""

    WAITING = "waiting"
    SENT = "sent"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"


OPEN: Final = frozenset({CommandState.WAITING, CommandState.SENT})


class UnreadableCommand(Exception):
    """A stored command that no gateway could take: its id, and why."""

    def __init__(self, number: str, reason: str) -> None:
        super().__init__(f"command {number}: {reason}")
        self.number, self.reason = number, reason


class Sending(NamedTuple):
    """A command on its way to a gateway."""

    gateway: str
    command: Command


def due(connection: Connection, shards: Iterable[int], *, limit: int, again_s: float) -> ReadRows[Sending]:
    """Commands to send now, at most `limit`; one without a reply is due again after `again_s` seconds."""
    parameters = {"shards": sorted(shards), "limit": limit, "again_s": again_s}
    return read_each(connection.execute(_SQL["due"], parameters).fetchall(), _sending)


def _sending(gateway: str, number: str, name: str, arguments: dict[str, Any], expires_ms: Decimal) -> Sending:
    try:
        return Sending(gateway, Command(id=number, name=name, arguments=arguments, expires_ms=int(expires_ms)))
    except ValidationError as error:
        raise UnreadableCommand(number, first_problem(error)) from error


def fail(connection: Connection, number: str, reason: str) -> None:
    """A command cannot be sent as it is stored: it has failed, and nobody tries it again."""
    connection.execute(_SQL["fail"], {"id": number, "reason": printable(reason)})


def sent(connection: Connection, sendings: Sequence[Sending]) -> None:
    """Note that these were handed to the broker."""
    connection.execute(_SQL["sent"], {"ids": [sending.command.id for sending in sendings]})


def reply(connection: Connection, gateway: str, reply: Reply) -> bool:
    """Store what a gateway answers. Returns whether it was asked and had not answered yet."""
    parameters = {
        "gateway": gateway,
        "id": reply.id,
        "ok": reply.ok,
        "reason": printable(reply.reason),
        "result": Jsonb(storable(reply.result)),
    }
    return connection.execute(_SQL["reply"], parameters).rowcount == 1


def give(
    connection: Connection, gateway: str, name: str, arguments: Mapping[str, Any], *, expires_s: float, who: str
) -> str:
    """Give an active gateway a command. Returns its id.

    Raises:
        InvalidCommand: there is no such command, or its arguments are wrong.
        UnknownName: there is no such gateway, or it is not active.
    """
    commands.parse(name, arguments)
    now_ms = time.time_ns() // 1_000_000
    number = names.ulid(now_ms, os.urandom(10))
    parameters = {
        "id": number,
        "gateway": gateway,
        "name": name,
        "arguments": Jsonb(dict(arguments)),
        "who": who,
        "expires_at": datetime.fromtimestamp(now_ms / 1000 + expires_s, UTC),
    }
    if connection.execute(_SQL["add"], parameters).fetchone() is None:
        raise UnknownName(f"There is no active gateway {gateway}.", hint="stocktide cloud gateway list")
    return number


def send(
    connection: Connection, gateway: str, name: str, arguments: Mapping[str, Any], *, expires_s: float, who: str
) -> str:
    """As `give`, by an operator: with a line in the audit log."""
    with connection.transaction():
        number = give(connection, gateway, name, arguments, expires_s=expires_s, who=who)
        audit_log.record(connection, "command.send", gateway, command=name, arguments=dict(arguments))
    return number


def show(connection: Connection, number: str) -> dict[str, Any]:
    """A command and what came of it.

    Raises:
        UnknownName: there is no such command.
    """
    rows = _all(connection, "show", id=number)
    if not rows:
        raise UnknownName(f"There is no command {number}.", hint="stocktide cloud command list")
    return rows[0]


def newest(
    connection: Connection, *, limit: int, tenant: str | None = None, gateway: str | None = None
) -> list[dict[str, Any]]:
    """The latest commands."""
    return _all(connection, "newest", limit=limit, tenant=tenant, gateway=gateway)


def _all(connection: Connection, statement: str, **parameters: Any) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL[statement], parameters).fetchall()

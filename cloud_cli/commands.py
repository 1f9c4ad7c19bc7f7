"""`stocktide cloud command`: ask a gateway to do something, and see what came of it."""

import json
import time
from getpass import getuser
from typing import Annotated, Any, Final

import typer

from cloud_cli.errors import BadInput
from cloud_cli.options import DatabaseUrl, Json, Limit, Tenant, database
from cloud_ingest.defaults import DATABASE_URL
from command_line.output import FAILED, ErrorGroup, emit_json, listing
from command_line.streams import say, writes
from wire_protocol.commands import REQUESTS

command_app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, help="Commands to gateways.")

LOOK_S: Final = 0.1
_KNOWN: Final = {name: request.summary for name, request in REQUESTS.items() if request.summary is not None}


@command_app.command("send", epilog="Commands: " + "; ".join(f"{name} ({what})" for name, what in _KNOWN.items()))
@writes
def send(
    gateway: Annotated[str, typer.Argument(metavar="GATEWAY", help="The gateway's name.")],
    name: Annotated[str, typer.Argument(metavar="COMMAND", help="One of those below.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE…]", help="Its arguments.")] = None,
    expires_s: Annotated[
        float, typer.Option("--expires", min=1, max=30 * 86_400, help="Drop it after this many seconds.")
    ] = 300.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the reply, until it expires.")] = True,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Ask a gateway to do something. Ends with 1 when it could not, or did not reply in time."""
    from cloud_store.provisioning import commands

    if name not in _KNOWN:
        raise BadInput(f"There is no command {name}.", hint=f"One of: {', '.join(_KNOWN)}")
    given = arguments_of(arguments or [])
    with database(database_url) as connection:
        number = commands.send(connection, gateway, name, given, expires_s=expires_s, who=getuser())
        found = commands.show(connection, number)
        while wait and found["state"] in commands.OPEN:
            time.sleep(LOOK_S)
            found = commands.show(connection, number)
    if json_:
        emit_json(found)
    elif found["state"] == commands.CommandState.DONE:
        say(f"{gateway} has done it.")
        if found["result"]:
            say(json.dumps(found["result"], indent=2, ensure_ascii=False))
    elif found["state"] == commands.CommandState.FAILED:
        say(f"{gateway} could not: {found['reason']}", err=True)
    elif found["state"] == commands.CommandState.EXPIRED:
        say(f"{gateway} has not replied within {expires_s:g} s; it will not be done any more.", err=True)
    else:
        say(f"Sent as {number}; see: stocktide cloud command list --gateway {gateway}")
    if found["state"] in {commands.CommandState.FAILED, commands.CommandState.EXPIRED}:
        raise typer.Exit(FAILED)


@command_app.command("list")
def list_(
    database_url: DatabaseUrl = DATABASE_URL,
    tenant: Tenant = None,
    gateway: Annotated[str | None, typer.Option(help="Only to this gateway.")] = None,
    limit: Limit = 50,
    json_: Json = False,
) -> None:
    """List the latest commands and what came of them."""
    from cloud_store.provisioning import commands

    with database(database_url, tenant) as connection:
        rows = commands.newest(connection, limit=limit, tenant=tenant, gateway=gateway)
    columns = ("created_at", "tenant", "gateway", "name", "arguments", "state", "reason", "created_by")
    listing(rows, columns, json_=json_, empty="No commands yet.")


def arguments_of(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE, where a value that is a whole number is one."""
    arguments: dict[str, Any] = {}
    for each in given:
        name, separator, value = each.partition("=")
        if not separator:
            raise BadInput(f"{each} is no NAME=VALUE.", hint="For example: location=A-01")
        arguments[name] = int(value) if value.isdecimal() and name in {"seconds", "minutes"} else value
    return arguments

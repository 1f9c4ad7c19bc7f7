"""`stocktide edge device` and `stocktide edge dead-letter`: devices and their dead letters."""

from typing import Annotated

import typer

from command_line.output import FAILED, emit_json, local_time, table
from command_line.streams import say, writes
from edge_agent.cli.errors import EdgeGroup, shows
from edge_agent.cli.options import Json, LedgerPath, Limit
from edge_agent.errors import BadInput

device_app = typer.Typer(cls=EdgeGroup, no_args_is_help=True, help="Devices that may speak at this gateway.")
letters_app = typer.Typer(cls=EdgeGroup, no_args_is_help=True, help="Device messages that could not be used.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The device's name, as in its topics.")]


@device_app.command("add")
@writes
def add(
    ledger: LedgerPath,
    devices: Annotated[list[str], typer.Argument(metavar="NAME…", help="Device names, as in their topics.")],
    kind: Annotated[str, typer.Option("--kind", help="scanner, rfid, scale, probe, handheld, …")] = "device",
    json_: Json = False,
) -> None:
    """Let devices speak at this gateway; the running agent knows them at once."""
    from edge_agent.ledger import database
    from edge_agent.ledger.sql import statement
    from wire_protocol import names

    rows = [(names.device(name), kind) for name in devices]
    with database.writing(ledger) as connection:
        connection.executemany(statement("insert_device"), rows)
    if json_:
        emit_json({"added": devices, "kind": kind})
    else:
        say(f"{len(rows)} device(s) may speak here now: {', '.join(devices)}")


@device_app.command("remove")
@writes
def remove(ledger: LedgerPath, device: Name, json_: Json = False) -> None:
    """Stop listening to a device; what it said stays in the ledger."""
    from edge_agent.ledger import database
    from edge_agent.ledger.sql import statement

    with database.writing(ledger) as connection:
        if not connection.execute(statement("delete_device"), (device,)).rowcount:
            raise BadInput(f"Device {device} is not registered here.", hint="See: stocktide edge device list")
    emit_json({"removed": device}) if json_ else say(f"{device} is no longer listened to.")


@device_app.command("list")
@shows
def list_(ledger: LedgerPath, json_: Json = False) -> None:
    """Devices that may speak here."""
    from edge_agent.ledger import database
    from edge_agent.ledger.sql import statement

    with database.reading(ledger) as connection:
        rows = connection.execute(statement("devices")).fetchall()
    if json_:
        emit_json([{"name": name, "kind": kind, "state": state, "seen_ms": seen} for name, kind, state, seen in rows])
        return
    table(["device", "kind", "state", "seen"], [[*row[:3], local_time(row[3])] for row in rows])


@shows
def firmware(ledger: LedgerPath, json_: Json = False) -> None:
    """Which firmware this gateway's devices are to run, and how far they are."""
    from edge_agent.ledger import database
    from edge_agent.provisioning import firmware
    from edge_agent.provisioning.images import ImageStore

    image_store = ImageStore.beside(ledger)
    with database.reading(ledger) as connection:
        wanted, rows = firmware.wanted(connection), firmware.rows(connection)
    releases = list(wanted.values())
    fetched = [image_store.fetched(release) for release in releases]
    if json_:
        shown = [
            release.model_dump(exclude_none=True) | {"fetched": size}
            for release, size in zip(releases, fetched, strict=True)
        ]
        emit_json({"wanted": shown, "devices": [row._asdict() for row in rows]})
        return
    table(
        ["model", "version", "release", "here"],
        [
            [release.model, release.version, release.release, f"{100 * size // release.size} %"]
            for release, size in zip(releases, fetched, strict=True)
        ],
        numbers=["release", "here"],
    )
    say("")
    table(
        ["device", "model", "runs", "release", "state", "why"],
        [[row.name, row.model, row.version, row.release, row.state, row.reason] for row in rows],
        numbers=["release"],
    )


@letters_app.command("list")
@shows
def letters(ledger: LedgerPath, limit: Limit = 50, json_: Json = False) -> None:
    """Messages that could not be used, with the reason; nothing of them is lost."""
    from edge_agent.ledger import database
    from edge_agent.ledger.sql import statement

    with database.reading(ledger) as connection:
        rows = connection.execute(statement("dead_letters"), {"limit": limit}).fetchall()
    if json_:
        keys = ("id", "at_ms", "topic", "payload", "reason")
        emit_json([dict(zip(keys, (*row[:3], row[3].decode(errors="replace"), row[4]), strict=True)) for row in rows])
        return
    table(
        ["id", "time", "topic", "reason", "payload"],
        [[row[0], local_time(row[1]), row[2], row[4], ascii(row[3][:60])[2:-1]] for row in rows],
        numbers=["id"],
    )


@letters_app.command("retry")
@writes
def retry(ledger: LedgerPath, json_: Json = False) -> None:
    """Try the dead letters again, for instance after their device was registered."""
    from edge_agent.devices.dead_letters import retry_dead_letters
    from edge_agent.settings import EdgeSettings

    taken, left = retry_dead_letters(ledger, EdgeSettings().device_late_s_max * 1_000)
    if json_:
        emit_json({"taken": taken, "left": left})
    else:
        say(f"{taken} taken into the ledger, {left} left.")
    if left:
        raise typer.Exit(FAILED)

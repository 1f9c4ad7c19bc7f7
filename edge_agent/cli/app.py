"""`stocktide edge`: the technician's commands. All but `run` work on the ledger file alone, agent or no agent.

Heavy imports happen inside the commands: the answer to `stock` must be there before the hand is back in the glove.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from command_line.output import FAILED, emit_json, facts, local_time, short_time, table
from command_line.streams import patient, say, writes
from edge_agent.cli import booking
from edge_agent.cli.devices import device_app, firmware, letters_app
from edge_agent.cli.enroll import certificate, enroll
from edge_agent.cli.errors import EdgeGroup, shows
from edge_agent.cli.ledger import backup, ledger_app
from edge_agent.cli.options import Json, LedgerPath, Limit
from edge_agent.cli.status import status

if TYPE_CHECKING:
    from edge_agent.ledger.database import Connection
    from edge_agent.provisioning.twin import ConfigRow

app = typer.Typer(
    cls=EdgeGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="The gateway: the technician's commands, and the agent.",
)
app.add_typer(ledger_app, name="ledger")
app.add_typer(device_app, name="device")
app.add_typer(letters_app, name="dead-letter")
app.command()(firmware)
app.command()(enroll)
app.command()(certificate)
app.command()(status)
app.command()(backup)

SkuFilter = Annotated[str | None, typer.Argument(metavar="[SKU]", help="Only this SKU.")]
LocationFilter = Annotated[str | None, typer.Option("--location", "-l", help="Only this location.")]


@contextlib.contextmanager
def _reading(path: Path) -> "Iterator[Connection]":
    from edge_agent.ledger import database

    with database.reading(path) as connection:
        yield connection


@app.command()
@writes
def init(
    ledger: LedgerPath,
    gateway: Annotated[str, typer.Option("--gateway", "-g", help="This gateway's name, unique across all tenants.")],
    cloud: Annotated[str | None, typer.Option("--cloud", help="The cloud's broker, mqtt://user:password@host.")] = None,
    local: Annotated[str | None, typer.Option("--local", help="The gateway's own broker.")] = None,
    device: Annotated[list[str] | None, typer.Option("--device", "-d", help="A device that may speak here.")] = None,
    json_: Json = False,
) -> None:
    """Create this gateway's ledger."""
    from edge_agent.ledger.clock import SystemClock
    from edge_agent.ledger.ledger import Ledger
    from wire_protocol import names
    from wire_protocol.address import BrokerAddress

    for url in (cloud, local):
        if url is not None:
            BrokerAddress.parse(url)
    devices = [names.device(name) for name in device or []]
    with Ledger.create(ledger, gateway, SystemClock(), devices=devices, cloud_url=cloud, local_url=local) as made:
        if json_:
            emit_json({"ledger": str(ledger), "gateway": made.gateway, "epoch": made.epoch, "devices": devices})
            return
        facts([("ledger", ledger), ("gateway", made.gateway), ("epoch", made.epoch), ("devices", len(devices))])
        say("\nNext: stocktide edge device add NAME, then stocktide edge run")


@app.command()
def run(
    ledger: LedgerPath,
    cloud: Annotated[str | None, typer.Option("--cloud", help="The cloud's broker; else as given to init.")] = None,
    local: Annotated[str | None, typer.Option("--local", help="The gateway's own broker.")] = None,
    mqtt_version: Annotated[str | None, typer.Option("--mqtt-version", help="5 or 3.1.1.")] = None,
) -> None:
    """Run the agent: devices in, ledger, uplink. Stops cleanly on SIGTERM."""
    import asyncio

    from edge_agent import agent
    from edge_agent.logs import configure
    from edge_agent.settings import EdgeSettings

    given: dict[str, Any] = {"cloud_url": cloud, "local_url": local, "mqtt_version": mqtt_version}
    settings = EdgeSettings(ledger=ledger, **{name: value for name, value in given.items() if value is not None})
    configure()
    asyncio.run(agent.run(settings))


@app.command()
@writes
def restore(
    ledger: LedgerPath,
    gateway: Annotated[str, typer.Option("--gateway", "-g", help="The name of the gateway that is replaced.")],
    cloud: Annotated[str, typer.Option("--cloud", help="The cloud's broker, mqtt://user:password@host.")],
    mqtt_version: Annotated[str, typer.Option("--mqtt-version", help="5 or 3.1.1.")] = "5",
    set_aside: Annotated[
        bool,
        typer.Option("--set-aside", help="Move a ledger that is here, such as a damaged one, out of the way first."),
    ] = False,
    wait_s: Annotated[float, typer.Option("--wait", min=1, help="Give up after this many seconds of silence.")] = 60.0,
    json_: Json = False,
) -> None:
    """Replace a dead gateway: a new ledger with everything that the cloud has of its site."""
    import logging

    from edge_agent.logs import configure
    from edge_agent.restore import restore as fetch
    from edge_agent.settings import EdgeSettings

    settings = EdgeSettings.model_validate({"ledger": ledger, "mqtt_version": mqtt_version})
    configure(logging.WARNING)
    with typer.progressbar(length=1, label="Fetching", file=patient(), hidden=json_) as bar:

        def progress(fetched: int, known: int) -> None:
            bar.length = max(1, known)
            bar.update(fetched - bar.pos)

        done = fetch(ledger, gateway, cloud, settings, wait_s=wait_s, progress=progress, aside=set_aside)
    if json_:
        emit_json(asdict(done))
        return
    facts(
        [
            ("ledger", ledger),
            ("epoch", done.epoch),
            ("logs", done.logs),
            ("entries", done.entries),
            ("devices", ", ".join(done.devices) or "none had reported"),
        ]
    )
    say("\nNext: stocktide edge run")


@app.command("twin")
@shows
def twin_(ledger: LedgerPath, json_: Json = False) -> None:
    """What the cloud wants this gateway and its devices to be, and how far they are."""
    from edge_agent.provisioning import twin

    with _reading(ledger) as connection:
        version, state, rows = twin.version(connection), twin.state(connection), twin.rows(connection)
    limits = state.limits.model_dump(exclude_none=True)
    if json_:
        devices = [row._asdict() | {"body": json.loads(row.body)} for row in rows]
        emit_json({"version": version, "limits": limits, "devices": devices})
        return
    if not version:
        say("The cloud has given this gateway no twin yet.")
        return
    facts([("version", version), *((name.replace("_", " ") + " at most", value) for name, value in limits.items())])
    if rows:
        say()
        table(
            ["device", "sent", "confirmed", "state", "configuration"],
            [[row.name, row.version, row.confirmed or None, _twin_state(row), row.body] for row in rows],
            numbers=["sent", "confirmed"],
        )


@app.command("item")
@shows
def item_(
    ledger: LedgerPath,
    sku: SkuFilter = None,
    limit: Limit = 50,
    json_: Json = False,
) -> None:
    """What the catalogue says of items; works offline."""
    from edge_agent.provisioning import catalog

    with _reading(ledger) as connection:
        found, (known, locations) = list(catalog.items(connection, sku, limit=limit)), catalog.size(connection)
        complete = catalog.place(connection).complete
    if json_:
        emit_json([each.model_dump() for each in found])
        return
    if not found:
        say(f"There is no item {sku} in the catalogue." if sku else "The cloud has sent no catalogue yet.")
        raise typer.Exit(FAILED if sku else 0)
    tracked = ("lot_tracked", "serial_tracked", "expiry_tracked")
    rows = [
        [
            each.sku,
            each.name,
            each.gtin,
            each.unit,
            ", ".join(name[:-8] for name in tracked if getattr(each, name)),
            each.reorder_point,
            "retired" if each.retired else None,
        ]
        for each in found
    ]
    table(
        ["sku", "name", "gtin", "unit", "tracked by", "reorder at", "state"],
        rows,
        numbers=["reorder at"],
        optional=["tracked by", "reorder at", "state", "gtin"],
    )
    if not sku:
        more = "" if complete else "; more is on its way"
        say(f"\n{len(found)} of {known} items, {locations} locations{more}")


@app.command()
@shows
def recount(ledger: LedgerPath, json_: Json = False) -> None:
    """List the locations that the cloud has asked to be counted and that no count has answered yet."""
    from edge_agent.provisioning.recounts import waiting

    with _reading(ledger) as connection:
        rows = waiting(connection)
    if json_:
        emit_json(rows)
    elif rows:
        columns = ("location", "sku", "lot", "note")
        cells = [[*(row[name] for name in columns), local_time(row["asked_ms"])] for row in rows]
        table([*columns, "asked"], cells)
        say("\nCount with: stocktide edge count SKU QUANTITY LOCATION")
    else:
        say("Nothing is asked to be counted.")


def _twin_state(row: "ConfigRow") -> str:
    return row.problem or ("obeyed" if row.confirmed >= row.version else "not confirmed")


@app.command()
@shows
def stock(
    ledger: LedgerPath,
    sku: SkuFilter = None,
    location: LocationFilter = None,
    virtual: Annotated[bool, typer.Option("--virtual", help="Also @supplier, @customer, …")] = False,
    zero: Annotated[bool, typer.Option("--zero", help="Also empty shelves.")] = False,
    limit: Limit = 1_000,
    json_: Json = False,
) -> None:
    """On hand, by SKU and location."""
    from edge_agent.ledger import database, queries, stock_digest
    from wire_protocol.quantities import shown

    with _reading(ledger) as connection, database.snapshot(connection):
        stock_digest.require_intact(connection)
        rows = queries.stock(connection, sku=sku, location=location, virtual=virtual, zero=zero, rows_max=limit)
    if json_:
        emit_json([queries.as_json(row) for row in rows])
        return
    if not rows:
        say("No stock." if sku is None and location is None else "No stock there.")
        return
    table(
        ["SKU", "location", "lot", "on hand", "unit", "counted"],
        [
            [row.sku, row.location, row.lot, shown(row.on_hand, row.scale), row.unit, local_time(row.counted_ms)]
            for row in rows
        ],
        numbers=["on hand"],
        whole=["counted"],
        optional=["lot", "unit", "counted"],
    )
    if len(rows) == limit:
        say(f"\nThe first {limit} rows; more with --limit.", err=True)


@app.command()
@shows
def history(
    ledger: LedgerPath,
    sku: SkuFilter = None,
    location: LocationFilter = None,
    limit: Limit = 30,
    json_: Json = False,
) -> None:
    """Movements and counts, newest first."""
    from edge_agent.ledger import queries

    with _reading(ledger) as connection:
        rows = queries.history(connection, sku=sku, location=location, rows_max=limit)
        here = queries.gateway(connection)
    if json_:
        emit_json([queries.as_json(row) for row in rows])
        return
    if not rows:
        say("Nothing has happened there yet.")
        return
    table(
        ["entry", "time", "what", "quantity", "SKU", "lot", "where", "by", "ref", "gateway", "cloud", "delivered"],
        [
            [
                row.seq,
                short_time(row.at_ms),
                row.kind,
                row.quantity if row.variance is None else f"{row.quantity} ({row.variance:+d})",
                row.sku,
                row.lot,
                row.destination if row.source is None else f"{row.source} → {row.destination}",
                row.actor or row.device,
                row.reference,
                "" if row.gateway == here else row.gateway,
                row.verdict or ("" if row.in_cloud else "waits"),
                row.delivered(),
            ]
            for row in rows
        ],
        numbers=["entry", "quantity"],
        whole=["time", "what"],
        optional=["lot", "by", "ref", "gateway", "cloud", "delivered"],
    )


@app.command()
@shows
def readings(
    ledger: LedgerPath,
    device: Annotated[str | None, typer.Argument(metavar="[DEVICE]", help="Only this device.")] = None,
    limit: Limit = 30,
    json_: Json = False,
) -> None:
    """Sensor readings, newest first."""
    from edge_agent.ledger import queries

    with _reading(ledger) as connection:
        rows = queries.readings(connection, device=device, rows_max=limit)
    if json_:
        emit_json([queries.as_json(row) for row in rows])
        return
    if not rows:
        say("No readings.")
        return
    table(
        ["time", "device", "metric", "value"],
        [[local_time(row.at_ms), row.device, row.metric, f"{row.value:g}"] for row in rows],
        numbers=["value"],
    )


for command in (
    booking.receive,
    booking.pick,
    booking.move,
    booking.ship,
    booking.arrive,
    booking.scrap,
    booking.count,
):
    app.command()(command)

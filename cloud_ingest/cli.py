"""`stocktide cloud`: migrate, run ingest workers, keep the registry, look at stock.

Heavy imports happen inside the commands. Everything has `--json`; nothing ends in a traceback for a user's mistake.
"""

from typing import Annotated, Any

import typer

from cloud_ingest.cli_options import DatabaseUrl, Json, Limit, Site, Tenant, database
from cloud_ingest.cli_registry import gateway_app, item_app, site_app, tenant_app
from cloud_ingest.defaults import DATABASE_URL
from command_line.output import ErrorGroup, emit_json, fail, listing

app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__.split(":")[0])
dead_letter_app = typer.Typer(no_args_is_help=True, help="What could not be used, and why.")
app.add_typer(tenant_app, name="tenant")
app.add_typer(site_app, name="site")
app.add_typer(gateway_app, name="gateway")
app.add_typer(item_app, name="item")
app.add_typer(dead_letter_app, name="dead-letter")


@app.command()
def migrate(
    database_url: DatabaseUrl = DATABASE_URL,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 when migrations are missing.")] = False,
    json_: Json = False,
) -> None:
    """Bring the database to the current schema."""
    from cloud_store import migrations  # noqa: PLC0415 - only this command needs the migration tool

    names = migrations.pending(database_url) if check else migrations.apply(database_url)
    if check and names:
        fail(f"The database lacks {', '.join(names)}.", "stocktide cloud migrate", 1)
    if json_:
        emit_json({"applied": names})
    else:
        typer.echo("\n".join(f"applied {name}" for name in names) or "The schema is current.")


@app.command()
def ingest(
    worker_name: Annotated[str | None, typer.Option(help="Name of this worker in logs and in the database.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="TCP port of /metrics.")] = None,
    database_url: Annotated[str | None, typer.Option(help="The cloud's database.")] = None,
    mqtt_url: Annotated[str | None, typer.Option(help="The cloud's broker.")] = None,
) -> None:
    """Run an ingest worker until SIGTERM. Everything else is set by STOCKTIDE_* variables."""
    import asyncio  # noqa: PLC0415 - only this command runs an event loop

    from cloud_ingest import log  # noqa: PLC0415 - as above
    from cloud_ingest.service import serve  # noqa: PLC0415 - as above
    from cloud_ingest.settings import IngestSettings  # noqa: PLC0415 - as above
    from wire_protocol.address import BrokerAddress  # noqa: PLC0415 - as above

    given: dict[str, Any] = {
        "worker_name": worker_name,
        "metrics_port": metrics_port,
        "database_url": database_url,
        "mqtt_url": mqtt_url,
    }
    settings = IngestSettings(**{name: value for name, value in given.items() if value is not None})
    BrokerAddress.parse(settings.mqtt_url)  # a wrong one is told in a sentence, before anything runs
    log.configure(settings.log_format)
    asyncio.run(serve(settings))


@app.command()
def status(database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, json_: Json = False) -> None:
    """Show the cloud as a whole: fleet, entries, dead letters, the last merge."""
    from cloud_store import reads  # noqa: PLC0415 - only commands that read need it

    with database(database_url) as connection:
        if tenant is not None:
            reads.require_tenant(connection, tenant)
        totals = reads.totals(connection)
        gateways = reads.gateways(connection, limit=reads.PAGE_ROWS_MAX, tenant=tenant)
    if json_:
        emit_json({**totals, "gateways_listed": gateways.rows})
        return
    width = max(len(name) for name in totals)
    for name, value in totals.items():
        typer.echo(f"{name.replace('_', ' '):<{width}}  {value if value is not None else '-'}")
    if gateways.rows:
        typer.echo()
        columns = ("tenant", "site", "gateway", "state", "backlog", "ledger_seq", "heard_at")
        listing(gateways.rows, columns, json_=False, numbers=("backlog", "ledger_seq"), empty="")


@app.command()
def stock(
    database_url: DatabaseUrl = DATABASE_URL,
    tenant: Tenant = None,
    site: Site = None,
    sku: Annotated[str | None, typer.Option(help="Only this SKU.")] = None,
    location: Annotated[str | None, typer.Option("--location", "-l", help="Only this location.")] = None,
    virtual: Annotated[bool, typer.Option("--virtual", help="Virtual locations too.")] = False,
    limit: Limit = 1000,
    json_: Json = False,
) -> None:
    """Show what is on hand."""
    from cloud_store import reads  # noqa: PLC0415 - only commands that read need it

    wanted = reads.StockFilter(tenant=tenant, site=site, sku=sku, location=location, virtual=virtual)
    rows: list[dict[str, Any]] = []
    after: str | None = None
    with database(database_url) as connection:
        if tenant is not None:
            reads.require_tenant(connection, tenant)
        while len(rows) < limit:
            page = reads.stock(connection, wanted, limit=min(limit - len(rows), reads.PAGE_ROWS_MAX), after=after)
            rows += page.rows
            after = page.after
            if after is None:
                break
    columns = ("tenant", "site", "location", "sku", "lot", "on_hand", "unit", "stub")
    listing(rows, columns, json_=json_, numbers=("on_hand",), empty="Nothing on hand.")
    if after is not None and not json_:
        typer.echo(f"More than {limit} rows: narrow the question or raise --limit.", err=True)


@dead_letter_app.command("list")
def list_dead_letters(
    database_url: DatabaseUrl = DATABASE_URL,
    tenant: Tenant = None,
    gateway: Annotated[str | None, typer.Option(help="Only from this gateway.")] = None,
    limit: Limit = 50,
    json_: Json = False,
) -> None:
    """Show the newest dead letters."""
    from cloud_store import dead_letters  # noqa: PLC0415 - only this command needs it

    with database(database_url) as connection:
        rows = dead_letters.newest(connection, limit=limit, tenant=tenant, gateway=gateway)
    columns = ("last_at", "times", "tenant", "gateway", "kind", "reason", "payload_bytes")
    listing(rows, columns, json_=json_, numbers=("times", "payload_bytes"), empty="No dead letters.")

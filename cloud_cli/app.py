"""`stocktide cloud`: migrate, run ingest workers, keep the registry, look at stock.

Heavy imports happen inside the commands. Everything has `--json`; nothing ends in a traceback for a user's mistake.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloud_cli.catalog import item_app, location_app
from cloud_cli.claims import ca_app, claim_app
from cloud_cli.commands import command_app
from cloud_cli.firmware import firmware_app
from cloud_cli.jobs import job_app
from cloud_cli.ledger import alarm_app, ledger_app
from cloud_cli.options import DatabaseUrl, Json, Limit, Site, Sku, SkuOption, Tenant, TheTenant, database
from cloud_cli.registry import gateway_app, site_app, tenant_app
from cloud_cli.tenancy import audit_app, database_user_app, device_app, key_app
from cloud_cli.twins import twin_app
from cloud_ingest.defaults import DATABASE_URL
from command_line.output import ErrorGroup, emit_json, fail, listing
from command_line.streams import say, writes

if TYPE_CHECKING:
    from cloud_store.reports.paging import RowPage

app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__.split(":")[0])
dead_letter_app = typer.Typer(no_args_is_help=True, help="What could not be used, and why.")
app.add_typer(tenant_app, name="tenant")
app.add_typer(site_app, name="site")
app.add_typer(gateway_app, name="gateway")
app.add_typer(claim_app, name="claim")
app.add_typer(ca_app, name="ca")
app.add_typer(item_app, name="item")
app.add_typer(location_app, name="location")
app.add_typer(dead_letter_app, name="dead-letter")
app.add_typer(ledger_app, name="ledger")
app.add_typer(alarm_app, name="alarm")
app.add_typer(twin_app, name="twin")
app.add_typer(command_app, name="command")
app.add_typer(job_app, name="job")
app.add_typer(firmware_app, name="firmware")
app.add_typer(key_app, name="key")
app.add_typer(audit_app, name="audit")
app.add_typer(database_user_app, name="database-user")
app.add_typer(device_app, name="device")


@app.command()
@writes
def migrate(
    database_url: DatabaseUrl = DATABASE_URL,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 when migrations are missing.")] = False,
    json_: Json = False,
) -> None:
    """Bring the database to the current schema."""
    from cloud_store.base import audit_log, migrations

    names = migrations.pending(database_url) if check else migrations.apply(database_url)
    if check and names:
        fail(f"The database lacks {', '.join(names)}.", "stocktide cloud migrate", 1)
    if names:
        with database(database_url) as connection:
            audit_log.record(connection, "migrate", names[-1], migrations=names)
    if json_:
        emit_json({"applied": names})
    else:
        say("\n".join(f"applied {name}" for name in names) or "The schema is current.")


@app.command()
def ingest(
    worker_name: Annotated[str | None, typer.Option(help="Name of this worker in logs and in the database.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="TCP port of /metrics.")] = None,
    database_url: Annotated[str | None, typer.Option(help="The cloud's database.")] = None,
    mqtt_url: Annotated[str | None, typer.Option(help="The cloud's broker.")] = None,
) -> None:
    """Run an ingest worker until SIGTERM. Everything else is set by STOCKTIDE_* variables."""
    import asyncio

    from cloud_ingest import log
    from cloud_ingest.settings import IngestSettings
    from cloud_ingest.worker import serve
    from wire_protocol.address import BrokerAddress

    given: dict[str, Any] = {
        "worker_name": worker_name,
        "metrics_port": metrics_port,
        "database_url": database_url,
        "mqtt_url": mqtt_url,
    }
    settings = IngestSettings(**{name: value for name, value in given.items() if value is not None})
    BrokerAddress.parse(settings.mqtt_url)  # a wrong one is an error message before anything runs
    log.configure(settings.log_format)
    asyncio.run(serve(settings))


@app.command()
def status(database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, json_: Json = False) -> None:
    """Show the cloud as a whole: fleet, entries, dead letters, the last merge."""
    from cloud_store.reports import stock_levels
    from cloud_store.reports.paging import PAGE_ROWS_MAX

    with database(database_url, tenant) as connection:
        totals = stock_levels.totals(connection)
        gateways = stock_levels.gateways(connection, limit=PAGE_ROWS_MAX, tenant=tenant)
    if json_:
        emit_json({**totals, "gateways_listed": gateways.rows})
        return
    width = max(len(name) for name in totals)
    for name, value in totals.items():
        say(f"{name.replace('_', ' '):<{width}}  {value if value is not None else '-'}")
    if gateways.rows:
        say()
        columns = ("tenant", "site", "gateway", "state", "backlog", "ledger_seq", "heard_at")
        listing(gateways.rows, columns, json_=False, numbers=("backlog", "ledger_seq"), empty="")


@app.command()
def stock(
    database_url: DatabaseUrl = DATABASE_URL,
    tenant: Tenant = None,
    site: Site = None,
    sku: Sku = None,
    sku_option: SkuOption = None,
    location: Annotated[str | None, typer.Option("--location", "-l", help="Only this location.")] = None,
    virtual: Annotated[bool, typer.Option("--virtual", help="Virtual locations too.")] = False,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="What was truly on hand at this time, as well as it is known today."),
    ] = None,
    known_at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only what the cloud had received by this time: a report as it was then."),
    ] = None,
    limit: Limit = 1000,
    json_: Json = False,
) -> None:
    """Show what is on hand, now or in the past.

    A pick on Monday that an offline gateway reported on Wednesday: `--at` Tuesday counts it, because it had happened.
    `--known-at` Tuesday does not, because the cloud did not know it then. Both together repeat a report of Tuesday
    about any day.

    TIME is ISO 8601 with a zone: 2026-11-17T18:00:00+01:00, or 2026-11-17T17:00:00Z.
    """
    from cloud_store.reports import stock_levels

    wanted = stock_levels.StockFilter(
        tenant=tenant, site=site, sku=sku or sku_option, location=location, virtual=virtual
    )
    read: Callable[..., RowPage] = stock_levels.stock
    head: str | None = None
    if at is not None or known_at is not None:
        from cloud_store.reports import history

        as_of = history.AsOf.parse(at, known_at).require_past(datetime.now(UTC))
        read, head = partial(history.stock, as_of=as_of), f"Stock {as_of}"
    with database(database_url, tenant, site) as connection:
        rows, complete = _whole(partial(read, connection, wanted), limit)
    if not json_:
        from wire_protocol.quantities import shown

        for row in rows:
            row["on_hand"] = shown(row["on_hand"], row["scale"])
        if head is not None:
            say(f"{head}\n")
    columns = ("tenant", "site", "location", "sku", "lot", "on_hand", "unit", "stub")
    listing(rows, columns, json_=json_, numbers=("on_hand",), empty="Nothing on hand.")
    if not complete and not json_:
        say(f"More than {limit} rows: narrow the question or raise --limit.", err=True)


@app.command()
def movements(
    tenant: TheTenant,
    database_url: DatabaseUrl = DATABASE_URL,
    site: Site = None,
    sku: Sku = None,
    sku_option: SkuOption = None,
    location: Annotated[str | None, typer.Option("--location", "-l", help="Only from or to this location.")] = None,
    gateway: Annotated[str | None, typer.Option("--gateway", "-g", help="Only of this gateway.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only this kind: receive, pick, move, ship …")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="From this time on.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Before this time.")] = None,
    limit: Limit = 50,
    json_: Json = False,
) -> None:
    """Show what was moved, newest first. TIME is ISO 8601 with a zone, as for `stock`."""
    from typing import get_args

    from cloud_store.base.errors import InvalidName
    from cloud_store.reports import history, stock_levels
    from wire_protocol.entries import MovementKind

    kinds = get_args(MovementKind)
    if kind is not None and kind not in kinds:
        raise InvalidName(f"There is no kind {kind}.", hint=f"Kinds: {', '.join(kinds)}.")
    wanted = stock_levels.MovementFilter(
        tenant=tenant,
        site=site,
        sku=sku or sku_option,
        location=location,
        gateway=gateway,
        kind=kind,
        since=history.parse_time(since),
        until=history.parse_time(until),
    )
    with database(database_url, tenant, site) as connection:
        rows, complete = _whole(partial(stock_levels.movements, connection, wanted), limit)
    columns = ("at", "site", "gateway", "kind", "sku", "lot", "quantity", "source", "destination", "actor", "reference")
    listing(rows, columns, json_=json_, numbers=("quantity",), empty="Nothing was moved.")
    if not complete and not json_:
        say(f"More than {limit} rows: narrow the question or raise --limit.", err=True)


def _whole(read: "Callable[..., RowPage]", limit: int) -> tuple[list[dict[str, Any]], bool]:
    """The rows of one page after the other, up to a limit, and whether these are all."""
    rows: list[dict[str, Any]] = []
    after: str | None = None
    while len(rows) < limit:
        page = read(limit=limit - len(rows), after=after)
        rows += page.rows
        after = page.after
        if after is None:
            break
    return rows, after is None


@dead_letter_app.command("list")
def list_dead_letters(
    database_url: DatabaseUrl = DATABASE_URL,
    tenant: Tenant = None,
    gateway: Annotated[str | None, typer.Option(help="Only from this gateway.")] = None,
    limit: Limit = 50,
    json_: Json = False,
) -> None:
    """Show the newest dead letters."""
    from cloud_store.merge import dead_letters

    with database(database_url, tenant) as connection:
        rows = dead_letters.newest(connection, limit=limit, tenant=tenant, gateway=gateway)
    columns = ("last_at", "times", "tenant", "gateway", "kind", "reason", "payload_bytes")
    listing(rows, columns, json_=json_, numbers=("times", "payload_bytes"), empty="No dead letters.")

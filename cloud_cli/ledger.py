"""`stocktide cloud ledger|alarm`: the cloud's ledger against itself, and what operators must look at."""

from typing import Annotated, Any

import typer

from cloud_cli.options import DatabaseUrl, Json, Limit, Site, Tenant, TheTenant, database
from cloud_ingest.defaults import DATABASE_URL
from command_line.output import FAILED, ErrorGroup, emit_json, listing
from command_line.streams import patient, say, writes

ledger_app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, help="Balances against entries.")
alarm_app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, help="What an operator must look at.")


@ledger_app.command()
def verify(tenant: TheTenant, site: Site = None, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Compare every balance and variance with what the entries give. Exit code 1 when something differs."""
    _each_site(tenant, site, database_url, rebuild=False, json_=json_)


@ledger_app.command()
@writes
def rebuild(
    tenant: TheTenant, site: Site = None, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False
) -> None:
    """Give balances and variances what the entries give. Merging waits for the site meanwhile; gateways keep on."""
    _each_site(tenant, site, database_url, rebuild=True, json_=json_)


def _each_site(tenant: str, site: str | None, database_url: str, *, rebuild: bool, json_: bool) -> None:
    from cloud_store.reports import verification

    shown: list[dict[str, Any]] = []
    with database(database_url) as connection:
        for each in verification.sites(connection, tenant, site):
            label, entries = (
                f"{'Rebuilding' if rebuild else 'Verifying'} {each.name}",
                verification.entry_count(connection, each),
            )
            with typer.progressbar(length=entries, label=label, file=patient(), hidden=json_) as bar:
                found = (verification.rebuild if rebuild else verification.verify)(connection, each, bar.update)
            shown.append(
                {
                    "tenant": each.tenant,
                    "site": each.name,
                    "entries": found.entries,
                    "balances_off": len(found.cells),
                    "variances_off": len(found.variances),
                    "findings": found.findings,
                }
            )
    columns = ("site", "entries", "balances_off", "variances_off")
    if json_:
        emit_json(shown)
    else:
        listing(shown, columns, json_=False, numbers=columns[1:], empty="No sites.")
        for row in shown:
            for finding in row["findings"]:
                say(f"{'mended' if rebuild else 'differs'}: {row['site']}: {finding}")
    if not rebuild and any(row["balances_off"] or row["variances_off"] for row in shown):
        if not json_:
            say(f"\nhint: stocktide cloud ledger rebuild --tenant {tenant}", err=True)
        raise typer.Exit(FAILED)


@alarm_app.command("list")
def list_alarms(
    database_url: DatabaseUrl = DATABASE_URL,
    tenant: Tenant = None,
    cleared: Annotated[bool, typer.Option("--all", help="Cleared ones too.")] = False,
    limit: Limit = 50,
    json_: Json = False,
) -> None:
    """Show open alarms, the newest first."""
    from cloud_store.merge import alarms

    with database(database_url, tenant) as connection:
        rows = alarms.listing(connection, limit=limit, tenant=tenant, cleared=cleared)
    columns = ("last_at", "times", "tenant", "site", "gateway", "kind", "detail")
    listing(rows, columns, json_=json_, numbers=("times",), empty="No alarms.")
    if not json_:
        for kind in dict.fromkeys(row["kind"] for row in rows):
            say(f"{kind}: {alarms.ADVICE[kind]}")


@alarm_app.command("clear")
@writes
def clear_alarms(gateway: str, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Clear a gateway's alarms: they were dealt with."""
    from cloud_store.merge import alarms

    with database(database_url) as connection:
        number = alarms.clear(connection, gateway)
    if json_:
        emit_json({"gateway": gateway, "cleared": number})
    else:
        say(f"{number} alarms of {gateway} cleared")

"""`stocktide cloud tenant|site|gateway`: the registry on the command line."""

from typing import Annotated, Any

import typer

from cloud_cli.options import DatabaseUrl, Json, Site, Tenant, TheTenant, database
from cloud_ingest.defaults import DATABASE_URL
from command_line.output import emit_json, listing
from command_line.streams import say, writes

tenant_app = typer.Typer(no_args_is_help=True, help="Tenants.")
site_app = typer.Typer(no_args_is_help=True, help="Sites of tenants.")
gateway_app = typer.Typer(no_args_is_help=True, help="Gateways at sites.")


def done(sentence: str, document: dict[str, Any], *, json_: bool) -> None:
    """Say what was done, as a sentence or as a document."""
    if json_:
        emit_json(document)
    else:
        say(sentence)


@tenant_app.command("add")
@writes
def add_tenant(name: str, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Register a tenant."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        registry.add_tenant(connection, name)
    done(f"tenant {name} added", {"tenant": name}, json_=json_)


@tenant_app.command("list")
def list_tenants(database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """List tenants."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        rows = registry.tenants(connection)
    numbers = ("sites", "gateways", "items")
    listing(rows, ("name", *numbers, "created_at"), json_=json_, numbers=numbers, empty="No tenants yet.")


@site_app.command("add")
@writes
def add_site(name: str, tenant: TheTenant, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Register a site of a tenant."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        registry.add_site(connection, tenant, name)
    done(f"site {name} of {tenant} added", {"tenant": tenant, "site": name}, json_=json_)


@site_app.command("list")
def list_sites(database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, json_: Json = False) -> None:
    """List sites."""
    from cloud_store.tenancy import registry

    with database(database_url, tenant) as connection:
        rows = registry.sites(connection, tenant)
    columns = ("tenant", "name", "gateways", "created_at")
    listing(rows, columns, json_=json_, numbers=("gateways",), empty="No sites yet.")


@gateway_app.command("add")
@writes
def add_gateway(
    name: str,
    tenant: TheTenant,
    site: Annotated[str, typer.Option("--site", "-s", help="The site.")],
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Register a gateway at a site. Its name is unique across all tenants."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        registry.add_gateway(connection, tenant, site, name)
    document = {"tenant": tenant, "site": site, "gateway": name}
    done(f"gateway {name} added at {site} of {tenant}", document, json_=json_)


@gateway_app.command("list")
def list_gateways(
    database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, site: Site = None, json_: Json = False
) -> None:
    """List gateways with what they last said."""
    from cloud_store.reports import stock_levels
    from cloud_store.reports.paging import PAGE_ROWS_MAX

    rows: list[dict[str, Any]] = []
    after: str | None = None
    with database(database_url, tenant, site) as connection:
        while True:
            page = stock_levels.gateways(connection, limit=PAGE_ROWS_MAX, tenant=tenant, site=site, after=after)
            rows += page.rows
            after = page.after
            if after is None:
                break
    for row in rows:
        row["stock"] = "differs" if row["stock_differs"] else "proved" if row["stock_proved_at"] else None
    columns = ("tenant", "site", "gateway", "registered", "state", "version", "backlog", "stock", "heard_at")
    listing(rows, columns, json_=json_, numbers=("backlog",), empty="No gateways yet.")


@gateway_app.command("disable")
@writes
def disable_gateway(name: str, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Refuse everything a gateway sends, from its next frame on."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        registry.set_gateway_state(connection, name, "disabled")
    done(f"gateway {name} is disabled", {"gateway": name, "state": "disabled"}, json_=json_)


@gateway_app.command("enable")
@writes
def enable_gateway(name: str, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Let a disabled gateway send again; workers notice within seconds."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        registry.set_gateway_state(connection, name, "active")
    done(f"gateway {name} is enabled", {"gateway": name, "state": "active"}, json_=json_)

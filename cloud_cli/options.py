"""Options that several cloud commands share, and the connection they open."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cloud_store.base.connection import Connection

DatabaseUrl = Annotated[
    str, typer.Option("--database-url", envvar="STOCKTIDE_DATABASE_URL", help="The cloud's database.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
Tenant = Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant.")]
TheTenant = Annotated[str, typer.Option("--tenant", "-t", help="The tenant.")]
Site = Annotated[str | None, typer.Option("--site", "-s", help="Only this site.")]
Sku = Annotated[str | None, typer.Argument(metavar="[SKU]", help="Only this SKU.")]
SkuOption = Annotated[str | None, typer.Option("--sku", hidden=True, help="As the argument, which it was once.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="Rows at most.")]


@contextmanager
def database(url: str, tenant: str | None = None, site: str | None = None) -> "Iterator[Connection]":
    """A connection for one command, in the name of the user who runs it.

    Raises:
        UnknownName: a tenant or a site that is filtered by is misspelt; an empty list would say that all is well.
    """
    from cloud_store.base import audit_log
    from cloud_store.base.connection import session
    from cloud_store.tenancy import registry

    with session(url, application="stocktide-cli") as connection:
        audit_log.act_as(connection, f"cli:{_user()}")
        registry.require(connection, tenant, site)
        yield connection


def _user() -> str:
    """Who runs this command, as far as the machine knows."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # no entry in the password file and no variable says so

"""`stocktide cloud key|audit|database-user|device`, and `tenant quota`: who may do how much, and who did what."""

from datetime import timedelta
from typing import Annotated

import typer

from cloud_cli.errors import BadInput
from cloud_cli.options import DatabaseUrl, Json, Limit, Tenant, TheTenant, database
from cloud_cli.registry import done, tenant_app
from cloud_ingest.defaults import DATABASE_URL
from command_line.output import ErrorGroup, as_json, listing
from command_line.streams import say, say_secret, writes

key_app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, help="API keys of people and programs.")
audit_app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, help="Who did what.")
database_user_app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, help="Database logins that see one tenant.")
device_app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, help="Devices of gateways.")

KEY_BYTES = 24
SALT_BYTES = 12
QUOTAS = ("gateways", "devices", "entries_per_s", "requests_per_minute", "names")


@key_app.command("create")
@writes
def create_key(
    name: Annotated[str, typer.Argument(help="What it is for; shown in lists.")],
    tenant: TheTenant,
    role: Annotated[str, typer.Option(help="viewer, technician, operator or admin.")] = "viewer",
    scope: Annotated[list[str] | None, typer.Option(help="Only this permission of the role; may be repeated.")] = None,
    days: Annotated[float, typer.Option(help="Days until it expires.")] = 365,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Make a key and print it, this once: it cannot be shown again."""
    from cloud_store.base.errors import InvalidName
    from cloud_store.tenancy import api_keys, permissions, registry

    known = permissions.highest([role])
    if known is None:
        raise InvalidName(f"There is no role {role}.", hint=f"Roles: {', '.join(permissions.ROLES)}.")
    with database(database_url) as connection:
        made = api_keys.create(
            connection,
            registry.tenant_id(connection, tenant),
            name=name,
            role=known,
            scopes=scope or None,
            lifetime=timedelta(days=days),
        )

    def undo() -> str:
        with database(database_url) as connection:
            api_keys.revoke(connection, made.prefix)
        return f"Key {made.prefix} is revoked."

    document = {"tenant": tenant, "prefix": made.prefix, "key": made.key, "expires_at": made.expires_at}
    say_secret(as_json(document) if json_ else made.key, undo)
    if not json_:
        say(f"{known} of {tenant} until {made.expires_at:%Y-%m-%d}; it is not shown again.", err=True)


@key_app.command("list")
def list_keys(database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, json_: Json = False) -> None:
    """List keys, without their secrets."""
    from cloud_store.tenancy import api_keys

    with database(database_url, tenant) as connection:
        rows = api_keys.listed(connection, tenant)
    if not json_:
        for row in rows:
            row["scopes"] = "all" if row["scopes"] is None else " ".join(row["scopes"])
    columns = ("tenant", "prefix", "name", "role", "scopes", "state", "expires_at", "last_used_at")
    listing(rows, columns, json_=json_, empty="No keys yet.")


@key_app.command("revoke")
@writes
def revoke_key(prefix: str, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """Refuse a key from its next request on."""
    from cloud_store.tenancy import api_keys

    with database(database_url) as connection:
        api_keys.revoke(connection, prefix)
    done(f"key {prefix} is revoked", {"prefix": prefix, "state": "revoked"}, json_=json_)


@tenant_app.command("quota")
@writes
def quota(
    tenant: str,
    gateways: Annotated[int | None, typer.Option(min=-1, help="Gateways at most; -1 lifts the limit.")] = None,
    devices: Annotated[int | None, typer.Option(min=-1, help="Devices at most; -1 lifts the limit.")] = None,
    entries_per_s: Annotated[int | None, typer.Option(min=-1, help="Entries merged per second; -1 lifts it.")] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=-1, help="API requests per minute; -1 for the API's usual limit.")
    ] = None,
    names: Annotated[
        int | None, typer.Option(min=-1, help="Names of items, places, lots, devices; -1 for the usual limit.")
    ] = None,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Show a tenant's quota, after changing what is given."""
    from cloud_store.base.errors import InvalidName
    from cloud_store.tenancy import quotas, registry

    given = dict(zip(QUOTAS, (gateways, devices, entries_per_s, requests_per_minute, names), strict=True))
    if 0 in (entries_per_s, requests_per_minute):
        raise InvalidName("A rate is at least 1.", hint="To stop a gateway: stocktide cloud gateway disable NAME")
    changed = {f"{name}_max": None if value < 0 else value for name, value in given.items() if value is not None}
    with database(database_url) as connection:
        tenant_id = registry.tenant_id(connection, tenant)
        if changed:
            quotas.change(connection, tenant_id, tenant, changed)
        rows = quotas.listed(connection, tenant)
    counted = ("gateways", "devices", "names")
    columns = ("tenant", *(f"{name}{end}" for name in QUOTAS for end in ("", "_max") if end or name in counted))
    listing(rows, columns, json_=json_, numbers=columns[1:], empty="")


@audit_app.command("list")
def list_audit(
    database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, limit: Limit = 50, json_: Json = False
) -> None:
    """Show the newest administrative actions."""
    from cloud_store.base import audit_log

    with database(database_url, tenant) as connection:
        rows = audit_log.newest(connection, limit=limit, tenant=tenant)
    if not json_:
        for row in rows:
            row["detail"] = " ".join(f"{name}={value}" for name, value in row["detail"].items() if value is not None)
    columns = ("at", "actor", "login", "tenant", "action", "object", "detail")
    listing(rows, columns, json_=json_, empty="Nothing was done yet.")


@database_user_app.command("create")
@writes
def create_database_user(
    name: Annotated[str, typer.Argument(help="Login; visible to the server's other logins, so not a tenant's name.")],
    tenant: TheTenant,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Make a read-only database login that sees one tenant, and print its password, this once."""
    from cloud_store.tenancy import database_users, registry

    with database(database_url) as connection:
        password = database_users.create(connection, name, registry.tenant_id(connection, tenant))

    def undo() -> str:
        with database(database_url) as connection:
            database_users.drop(connection, name)
        return f"Login {name} is dropped."

    say_secret(as_json({"name": name, "tenant": tenant, "password": password}) if json_ else password, undo)
    if not json_:
        say(f"{name} reads what {tenant} has; the password is not shown again.", err=True)


@database_user_app.command("list")
def list_database_users(database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, json_: Json = False) -> None:
    """List the logins for dashboards."""
    from cloud_store.tenancy import database_users

    with database(database_url, tenant) as connection:
        rows = database_users.listed(connection, tenant)
    listing(rows, ("name", "tenant", "state", "created_at"), json_=json_, empty="No database users yet.")


@database_user_app.command("drop")
@writes
def drop_database_user(name: str, database_url: DatabaseUrl = DATABASE_URL, json_: Json = False) -> None:
    """End a login and its sessions, then remove its role; run it again when something was in the way of that."""
    from cloud_store.tenancy import database_users

    with database(database_url) as connection:
        database_users.drop(connection, name)
    done(f"database user {name} is gone", {"name": name}, json_=json_)


@device_app.command("add")
@writes
def add_device(
    name: str,
    gateway: Annotated[str, typer.Option("--gateway", "-g", help="Its gateway.")],
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Register a device before its first scan."""
    from cloud_store.tenancy import registry

    with database(database_url) as connection:
        registry.add_device(connection, gateway, name)
    done(f"device {name} added at {gateway}", {"gateway": gateway, "device": name}, json_=json_)


@device_app.command("key")
@writes
def device_key(
    name: str,
    gateway: Annotated[str, typer.Option("--gateway", "-g", help="Its gateway; the twin there must have the device.")],
    remove: Annotated[bool, typer.Option("--remove", help="It may not connect any more.")] = False,
    database_url: DatabaseUrl = DATABASE_URL,
    json_: Json = False,
) -> None:
    """Give a device a key for its gateway's broker and print it, this once: the twin has only its hash."""
    import secrets
    from getpass import getuser

    from cloud_store.provisioning import twins
    from wire_protocol.passwords import hashed

    key = None if remove else secrets.token_urlsafe(KEY_BYTES)
    with database(database_url) as connection:
        if name not in ((twins.show(connection, gateway)["state"] or {}).get("devices") or {}):
            hint = f'stocktide cloud twin set {gateway} --patch \'{{"devices": {{"{name}": {{"kind": "scanner"}}}}}}\''
            raise BadInput(f"The twin of {gateway} has no device {name}.", hint=hint)
        stored = None if key is None else hashed(key, salt=secrets.token_bytes(SALT_BYTES))
        list(twins.change(connection, twins.Selection((gateway,)), {"devices": {name: {"key": stored}}}, who=getuser()))
    document = {"gateway": gateway, "device": name, "key": key}
    if key is None:
        done(f"device {name} of {gateway} has no key any more", document, json_=json_)
        return

    def undo() -> str:
        with database(database_url) as connection:
            taken = {"devices": {name: {"key": None}}}
            list(twins.change(connection, twins.Selection((gateway,)), taken, who=getuser()))
        return f"Device {name} of {gateway} has no key now."

    say_secret(as_json(document) if json_ else key, undo)
    if not json_:
        say(f"{name} connects to {gateway}'s broker with it as its password; it is not shown again.", err=True)


@device_app.command("list")
def list_devices(database_url: DatabaseUrl = DATABASE_URL, tenant: Tenant = None, json_: Json = False) -> None:
    """List devices that are registered or were seen in a ledger."""
    from cloud_store.tenancy import registry

    with database(database_url, tenant) as connection:
        rows = registry.devices(connection, tenant)
    listing(rows, ("tenant", "gateway", "name", "created_at"), json_=json_, empty="No devices yet.")

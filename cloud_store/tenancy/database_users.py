"""Logins for people who ask with SQL: read-only, and bound to one tenant by a table, not by anything they can set.

Roles belong to the whole server and their names are visible to each other, so a name should not tell a tenant's.

What a session may set for itself is no bound: a statement's time limit, reading only. What bounds these logins is what
they may not do at all (no table, no temporary table, no large object), how many connections each has, and a worker that
ends sessions which take too long (`end_overdue`).

Invariant: a password leaves `create` once; the server is sent its SCRAM verifier only.
"""

import re
import secrets
from contextlib import suppress
from typing import Any, Final, NamedTuple

from psycopg import errors as pg
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier, Literal

from cloud_store.base import audit_log, sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import AlreadyExists, InvalidName, StoreError, UnknownName

STATEMENT_TIMEOUT_MS: Final = 30_000
IDLE_IN_TRANSACTION_MS: Final = 30_000
TEMP_FILES_KB_MAX: Final = 1024 * 1024
CONNECTIONS_MAX: Final = 8
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{2,62}")
_SQL: Final = sql.load("database_users")


class RoleInUse(StoreError):
    """A role cannot be removed yet."""

    usage = True


class EndedSession(NamedTuple):
    """A session that took too long; `ended` is false where the migrating login may not end it."""

    role: str
    ended: bool
    state: str


def create(connection: Connection, name: str, tenant_id: int) -> str:
    """Make a login that sees one tenant; returns its password.

    Raises:
        InvalidName: not such a name.
        AlreadyExists: the server has a role of this name.
    """
    if not _NAME.fullmatch(name) or name.startswith(("stocktide", "pg_")):
        raise InvalidName(f"{name} is no name for a login.", hint="Lower case, digits and _, 3 to 63; not stocktide….")
    password = secrets.token_urlsafe(24)
    verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    role = Identifier(name)
    database = Identifier(connection.info.dbname)
    # Utility statements take no parameters; these are composed of quoted parts.
    statements = [
        SQL("CREATE ROLE {} LOGIN PASSWORD {} CONNECTION LIMIT {}").format(role, Literal(verifier), CONNECTIONS_MAX),
        SQL("GRANT stocktide_dashboard TO {}").format(role),
        *(
            SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}").format(role, database, Identifier(setting), Literal(value))
            for setting, value in (
                ("default_transaction_read_only", "on"),
                ("statement_timeout", STATEMENT_TIMEOUT_MS),
                ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_MS),
            )
        ),
        # So that the workers' role may end its sessions, and `drop` what it owns.
        SQL("GRANT {} TO stocktide_owner").format(role),
        # Temporary tables fill a disk. The workers have some; PUBLIC is every login there is.
        SQL("GRANT TEMPORARY ON DATABASE {} TO stocktide_ingest, stocktide_owner").format(database),
        SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(database),
        SQL("ALTER ROLE {} IN DATABASE {} SET search_path = tenant_view, public").format(role, database),
    ]
    with connection.transaction():
        try:
            for statement in statements:
                connection.execute(statement)
        except pg.DuplicateObject as error:
            raise AlreadyExists(f"The server has a role {name} already.") from error
        if connection.info.parameter_status("is_superuser") == "on":
            _bound_as_superuser(connection, role)
        connection.execute(_SQL["bind"], {"role": name, "tenant_id": tenant_id})
        audit_log.record(connection, "database-user.create", name, tenant_id=tenant_id)
    return password


def _bound_as_superuser(connection: Connection, role: Identifier) -> None:
    """What only a superuser may set: no session's own word lifts these."""
    connection.execute(SQL("ALTER ROLE {} SET temp_file_limit = {}").format(role, Literal(TEMP_FILES_KB_MAX)))
    for function in ("lo_create(oid)", "lo_creat(integer)", "lo_from_bytea(oid, bytea)"):
        connection.execute(SQL("REVOKE EXECUTE ON FUNCTION {} FROM PUBLIC").format(SQL(function)))


def drop(connection: Connection, name: str) -> None:
    """End a login, whatever is in the way; then its sessions, what it owns, and its role.

    The first is a transaction of its own: to take away a login must never wait for tidying up after it.

    Raises:
        UnknownName: there is no such login.
        RoleInUse: it is ended, and something in another database keeps its role; the same call again goes on.
    """
    role = Identifier(name)
    with connection.transaction():
        row = connection.execute(_SQL["end"], {"role": name}).fetchone()
        if row is None:
            raise UnknownName(f"There is no database user {name}.", hint="stocktide cloud database-user list")
        connection.execute(SQL("ALTER ROLE {} NOLOGIN").format(role))
        audit_log.record(connection, "database-user.drop", name, tenant_id=row[0])
    # Where these may not be ended, they see nothing any more: no row binds them to a tenant.
    with suppress(pg.InsufficientPrivilege):
        connection.execute(_SQL["end_sessions"], {"role": name})
    try:
        with connection.transaction():
            connection.execute(SQL("DROP OWNED BY {}").format(role))
            connection.execute(SQL("DROP ROLE {}").format(role))
            connection.execute(_SQL["unbind"], {"role": name})
    except (pg.DependentObjectsStillExist, pg.InsufficientPrivilege, pg.ObjectInUse) as error:
        hint = f"In each database of the server: DROP OWNED BY {name}; then run this again."
        raise RoleInUse(
            f"The login {name} is ended. Its role could not be removed: {error.diag.message_primary}", hint=hint
        ) from error


def end_overdue(connection: Connection) -> list[EndedSession]:
    """End the sessions of database users that take longer than they may; called by workers now and then."""
    bounds = {"statement_s": STATEMENT_TIMEOUT_MS // 1000, "idle_s": IDLE_IN_TRANSACTION_MS // 1000}
    return [EndedSession(*row) for row in connection.execute(_SQL["end_overdue"], bounds)]


def listed(connection: Connection, tenant: str | None = None) -> list[dict[str, Any]]:
    """All such logins of this database, or those of a tenant."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL["listed"], {"tenant": tenant}).fetchall()

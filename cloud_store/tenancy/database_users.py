"""Logins for people who ask with SQL: read-only, and bound to one tenant by a table, not by anything they can set.

Roles belong to the whole server and their names are visible to each other, so a name should not tell a tenant's.

Invariant: a password leaves `create` once; the server is sent its SCRAM verifier only.
"""

import re
import secrets
from typing import Any, Final

import psycopg
from psycopg import errors as pg
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier, Literal

from cloud_store.base import audit_log, sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import AlreadyExists, InvalidName, UnknownName

STATEMENT_TIMEOUT_MS: Final = 30_000
CONNECTIONS_MAX: Final = 8
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{2,62}")
_SQL: Final = sql.load("database_users")


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
            )
        ),
        SQL("ALTER ROLE {} IN DATABASE {} SET search_path = tenant_view, public").format(role, database),
    ]
    with connection.transaction():
        try:
            for statement in statements:
                connection.execute(statement)
        except pg.DuplicateObject as error:
            raise AlreadyExists(f"The server has a role {name} already.") from error
        connection.execute(_SQL["bind"], {"role": name, "tenant_id": tenant_id})
        audit_log.record(connection, "database-user.create", name, tenant_id=tenant_id)
    return password


def drop(connection: Connection, name: str) -> None:
    """Remove a login and end its sessions."""
    with connection.transaction():
        row = connection.execute(_SQL["unbind"], {"role": name}).fetchone()
        if row is None:
            raise UnknownName(f"There is no database user {name}.", hint="stocktide cloud database-user list")
        connection.execute(SQL("DROP ROLE {}").format(Identifier(name)))
        audit_log.record(connection, "database-user.drop", name, tenant_id=row[0])
    try:
        connection.execute(_SQL["end_sessions"], {"role": name})
    except psycopg.errors.InsufficientPrivilege:
        return  # its sessions see nothing any more: no row binds them to a tenant


def listed(connection: Connection, tenant: str | None = None) -> list[dict[str, Any]]:
    """All such logins of this database, or those of a tenant."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL["listed"], {"tenant": tenant}).fetchall()

"""The audit log: every administrative action, who, when, what, on which object.

Who is the setting `stocktide.actor` of the session or transaction, beside the database login, which cannot be forged.

Invariant: an action and its line are one transaction. Invariant: a line is never changed (a trigger refuses) and no
role but the tables' owner could even try.
"""

from typing import Any, Final

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from cloud_store.base import sql
from cloud_store.base.connection import Connection

ACTOR_CHARS_MAX: Final = 200
ROWS_MAX: Final = 1_000
_SQL: Final = sql.load("audit_log")


def act_as(connection: Connection, actor: str) -> None:
    """Say who acts in this session."""
    connection.execute(_SQL["act_as"], {"actor": actor[:ACTOR_CHARS_MAX], "local": False})


def record(connection: Connection, action: str, target: str, *, tenant_id: int | None = None, **detail: Any) -> None:
    """Add a line, in the caller's transaction.

    Args:
        connection: the session, with its actor.
        action: a verb on a noun: `gateway.add`.
        target: the name of what was acted on.
        tenant_id: whose it is; None for what concerns the whole cloud.
        detail: what else is worth knowing; no secrets.
    """
    fields = {"tenant_id": tenant_id, "action": action, "object": target, "detail": Jsonb(detail)}
    connection.execute(_SQL["record"], fields)


def newest(
    connection: Connection, *, limit: int, tenant: str | None = None, before: int | None = None
) -> list[dict[str, Any]]:
    """Lines, newest first: all that the session may see, or a tenant's; `before` is an `audit_id`."""
    bounded = min(max(1, limit), ROWS_MAX)
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL["newest"], {"limit": bounded, "tenant": tenant, "before": before}).fetchall()

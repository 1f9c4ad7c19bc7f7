"""Quotas of tenants: gateways and devices, refused where they are registered; ingest, which only ever slows down.

The token bucket of each tenant with an ingest quota fills with `entries_per_s_max` and holds `BURST_S` seconds of it.
A merge takes out what it merged, and may take the bucket below zero. All workers share it.

Invariant: nothing here refuses an entry. A tenant whose bucket is empty gets smaller windows; what arrives is merged.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from psycopg.rows import dict_row

from cloud_store.base import audit_log, sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import QuotaExceeded

BURST_S: Final = 2.0
LIMITS: Final = ("gateways_max", "devices_max", "entries_per_s_max", "requests_per_minute_max", "names_max")
_SQL: Final = sql.load("quotas")


class BucketLevel(NamedTuple):
    """A tenant's token bucket: entries in it, below zero after an overdraft, and its refill in entries per second."""

    entries: float
    per_s: float


def charge(connection: Connection, merged: Mapping[int, int]) -> dict[int, BucketLevel]:
    """Take entries out of tenants' buckets: {tenant_id: entries}; 0 only looks. Returns those that have a quota."""
    ordered = sorted(merged.items())
    columns = {
        "tenants": [tenant for tenant, _ in ordered],
        "entries": [entries for _, entries in ordered],
        "burst_s": BURST_S,
    }
    with connection.transaction():
        connection.execute(_SQL["open_buckets"], columns)
        connection.execute(_SQL["lock_buckets"], columns)
        rows = connection.execute(_SQL["charge"], columns).fetchall()
    return {tenant: BucketLevel(entries, per_s) for tenant, entries, per_s in rows}


def change(connection: Connection, tenant_id: int, tenant: str, limits: Mapping[str, int | None]) -> None:
    """Set some of a tenant's limits (`LIMITS`); None lifts one."""
    fields = {name: limits.get(name) for name in LIMITS} | {f"set_{name}": name in limits for name in LIMITS}
    with connection.transaction():
        connection.execute(_SQL["change"], fields | {"tenant_id": tenant_id})
        audit_log.record(connection, "tenant.quota", tenant, tenant_id=tenant_id, **limits)


def listed(connection: Connection, tenant: str | None = None) -> list[dict[str, Any]]:
    """What each tenant uses and may use."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL["listed"], {"tenant": tenant}).fetchall()


def require_room(connection: Connection, tenant_id: int, what: str) -> None:
    """Refuse one more `gateways` or `devices` beyond the quota; others that register wait until the transaction ends.

    Raises:
        QuotaExceeded: the tenant has as many as it may.
    """
    connection.execute(_SQL["lock"], {"tenant_id": tenant_id})
    row = connection.execute(_SQL[f"room_{what}"], {"tenant_id": tenant_id}).fetchone()
    if row is not None and row[1] is not None and row[0] >= row[1]:
        raise QuotaExceeded(
            f"Tenant {row[2]} has {row[0]} {what} of {row[1]} allowed.",
            hint=f"Raise it: stocktide cloud tenant quota {row[2]} --{what} {row[0] + 1}",
        )

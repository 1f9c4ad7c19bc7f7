"""Everything that a dashboard's login can hold in a database."""

from typing import Any

import psycopg
from psycopg import errors as pg

LOCK_CLASSES = (0x53534954, 0x53534844, 0x53574B52)  # what workers once used, by their names in the old migrations


def hold_everything(dashboard: psycopg.Connection[Any], site_ids: int) -> None:
    """Every lock that a login may take: advisory ones of all kinds and numbers, and on the tables that it reads."""
    for lock_class in LOCK_CLASSES:
        dashboard.execute(
            "SELECT pg_advisory_lock(%s, n) FROM generate_series(0, %s) AS n", [lock_class, site_ids + 64]
        )
    dashboard.execute("SELECT pg_advisory_lock(n) FROM generate_series(0, 100) AS n")
    dashboard.execute("SELECT pg_advisory_lock(%s)", [0x5354_4944_4D49_4752])
    dashboard.execute("BEGIN")
    for (name,) in dashboard.execute("SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r'").fetchall():
        try:
            with dashboard.transaction():
                dashboard.execute(f"LOCK TABLE {name} IN ACCESS SHARE MODE".encode())
        except (pg.InsufficientPrivilege, pg.WrongObjectType):
            continue

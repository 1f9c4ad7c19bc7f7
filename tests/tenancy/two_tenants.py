"""Two tenants with a row in every table, and everything that a session of one of them can read.

Whatever is bravo's has the word in it where there is room for a word. Where there are only numbers, a second look
after bravo has come must see what the first saw.
"""

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Final, NamedTuple

import psycopg
from psycopg import errors as pg
from psycopg.sql import SQL, Identifier

from cloud_store.base.connection import Connection
from cloud_store.merge import dead_letters
from cloud_store.merge.alarms import Alarm, AlarmKind, raise_all
from cloud_store.merge.dead_letters import DeadLetter, LetterKind
from cloud_store.provisioning import commands, firmware, twins
from cloud_store.tenancy import api_keys, merged_names, quotas, registry
from testbed.store import MergeSession
from tests.cloud_store.histories import BOOT, NOW_MS, Chain, count, movement
from wire_protocol import clock
from wire_protocol.catalog import CatalogItem
from wire_protocol.entries import LedgerEntry, Reading
from wire_protocol.firmware import Release

OWN_SCHEMAS: Final = ("public", "tenant_view")
# What everybody may see: which roles there are is not a tenant's secret (docs/tenancy.md), nor is the server's load.
CATALOGS_EXEMPT: Final = ("pg_stat_activity",)


class Seen(NamedTuple):
    """The rows of each relation that can be read, as text, and the relations that cannot."""

    rows: dict[str, list[str]]
    refused: frozenset[str]


class Look(NamedTuple):
    """What the first tenant saw before the second came: as the API, and as its dashboard."""

    api: Seen
    dashboard: Seen


class Tenants(NamedTuple):
    """The database's two tenants."""

    connection: Connection
    dashboard: str
    before: Look
    alpha: api_keys.NewKey
    bravo: api_keys.NewKey


# Both tables of a history have rows of each tenant.
_FOLD_ONE = """
WITH taken AS (
    DELETE FROM cell_history_new WHERE ctid = (SELECT max(ctid) FROM cell_history_new) RETURNING *
)
INSERT INTO cell_history SELECT * FROM taken
"""


def build(connection: Connection, tenant: str) -> api_keys.NewKey:
    """Give a tenant a row in every table; returns an administrator's key."""
    gateway = f"gw-{tenant}"
    registry.add_tenant(connection, tenant)
    registry.add_site(connection, tenant, f"{tenant}-site")
    registry.add_gateway(connection, tenant, f"{tenant}-site", gateway)
    skus = [f"{tenant}-sku", f"{tenant}-misspelt"]
    registry.add_items(connection, tenant, [CatalogItem(sku=sku, name=f"{tenant} screw") for sku in skus])
    hlc = clock.pack(NOW_MS)
    words = {"sku": f"{tenant}-sku", "lot": f"{tenant}-lot", "device": f"{tenant}-scanner", "reference": f"{tenant}-1"}
    entries: list[LedgerEntry] = [
        movement(hlc, "receive", "@supplier", f"{tenant}-shelf", 7, event=f"{tenant}-event", **words),
        count(hlc + 1, f"{tenant}-shelf", 5, **words),
        movement(hlc + 2, "receive", "@supplier", f"{tenant}-shelf", 2, **(words | {"sku": skus[1]})),
    ]
    reading = Reading(hlc=hlc, boot=BOOT, mono_ms=0, device=f"{tenant}-probe", values={f"{tenant}_temperature": 4.5})
    with closing(MergeSession(connection.info.dsn)) as merger:
        merger.merge([Chain(gateway).seal(entries), Chain(gateway, "readings").seal([reading])])
    connection.execute(_FOLD_ONE)
    merged_names.merge(connection, "item", tenant, skus[1], skus[0])
    tenant_id = registry.tenant_id(connection, tenant)
    with connection.transaction():
        dead_letters.add(
            connection,
            [
                DeadLetter(
                    LetterKind.FRAME,
                    gateway,
                    f"topic/{tenant}",
                    f"{tenant} reason",
                    tenant.encode(),
                    tenant_id=tenant_id,
                )
            ],
        )
        raise_all(connection, [Alarm(gateway, AlarmKind.FORK, f"{tenant} forked")])
        connection.execute(
            "INSERT INTO gateway_status (gateway_id, state, epoch, version, heard_at, backlog, dead_letters,"
            " readings_dropped, devices_online) SELECT gateway_id, 'online', 'e', %s, now(), 0, 0, 0, 0 FROM gateway"
            " WHERE name = %s",
            [tenant, gateway],
        )
        connection.execute("INSERT INTO ingest_credit VALUES (%s, 0, now())", [tenant_id])
        connection.execute("INSERT INTO request_count VALUES (%s, now(), 0)", [tenant_id])
    patch = {"devices": {f"{tenant}-probe": {"kind": "probe"}}}
    assert list(twins.change(connection, twins.Selection((gateway,)), patch, who=tenant))
    commands.give(connection, gateway, "recount", {"location": f"{tenant}-shelf"}, expires_s=60, who=tenant)
    body = f"{tenant} image".encode()
    release = Release(
        model=f"{tenant}-model",
        version="1.0",
        release=1,
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        signature="0" * 128,
    )
    firmware.add(connection, tenant, [release], body, who=tenant)
    quotas.change(connection, tenant_id, tenant, {"devices_max": 100})
    return api_keys.create(connection, tenant_id, name=f"{tenant} key", role="admin", lifetime=timedelta(days=1))


@contextmanager
def session(connection: Connection, *, login: str | None, tenant: str | None) -> Iterator[None]:
    """The rest of the block as a dashboard's login, or as the API's role with a tenant, in a superuser's session."""
    with connection.transaction(force_rollback=True):
        if login is not None:
            connection.execute(SQL("SET LOCAL SESSION AUTHORIZATION {}").format(Identifier(login)))
        else:
            number = None if tenant is None else str(registry.tenant_id(connection, tenant))
            connection.execute("SET LOCAL ROLE stocktide_api")
            if number is not None:
                connection.execute("SELECT set_config('stocktide.tenant_id', %s, true)", [number])
        yield


def relations(connection: Connection) -> list[tuple[str, str]]:
    """Every table and view of the database, the system's own and TimescaleDB's chunks included."""
    return connection.execute(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f') AND n.nspname NOT LIKE 'pg_temp%%'"
        " AND n.nspname NOT LIKE 'pg_toast%%'"
        " ORDER BY 1, 2"
    ).fetchall()


def walk(connection: Connection, schemas: tuple[str, ...] | None = None) -> Seen:
    """Read everything, as whoever the session is."""
    rows: dict[str, list[str]] = {}
    refused = set()
    for schema, name in relations(connection):
        if schemas is not None and schema not in schemas:
            continue
        try:
            with connection.transaction():
                found = connection.execute(
                    SQL("SELECT r::text FROM {} AS r").format(Identifier(schema, name))
                ).fetchall()
        except (pg.InsufficientPrivilege, pg.ObjectNotInPrerequisiteState, pg.FeatureNotSupported):
            refused.add(f"{schema}.{name}")
        else:
            rows[f"{schema}.{name}"] = sorted(row[0] for row in found)
    return Seen(rows, frozenset(refused))


def named(seen: Seen, word: str) -> dict[str, list[str]]:
    """The rows that have a word in them, by relation."""
    found = {name: [row for row in rows if word in row] for name, rows in seen.rows.items()}
    return {name: rows for name, rows in found.items() if rows and name.partition(".")[2] not in CATALOGS_EXEMPT}


def login_url(connection: Connection, name: str) -> str:
    """The address of the test's database for another login; the test's server asks for no password."""
    parts = connection.info
    return f"postgresql://{name}@{parts.host}:{parts.port}/{parts.dbname}"


def drop_login(server: Connection, name: str) -> None:
    """Remove a login that a test made; logins belong to the server and outlive the test's database."""
    with psycopg.connect(server.info.dsn, autocommit=True) as admin:
        if admin.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone():
            admin.execute(SQL("DROP OWNED BY {}").format(Identifier(name)))
            admin.execute(SQL("DROP ROLE {}").format(Identifier(name)))

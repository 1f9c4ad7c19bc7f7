"""Conditions that tell what they are asked about. Broken when one sees a row that the policy has not let through.

A function that is not leakproof and costs next to nothing is what a planner would like to call first.
"""

from contextlib import suppress

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from cloud_store.base.connection import Connection
from tests.tenancy.two_tenants import Tenants, session

VIEWS = ("movement", "frame", "reading", "stock", "moved", "measured")
# What a plan may be forced to: each of these once put a condition elsewhere.
PLANS = (
    "",
    "SET LOCAL enable_seqscan = off",
    "SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off",
    "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off",
    "SET LOCAL enable_nestloop = off",
    "SET LOCAL plan_cache_mode = force_generic_plan",
)
QUESTIONS = (
    "SELECT * FROM {view} AS r WHERE leak(r::text)",
    "SELECT * FROM {view} AS r WHERE leak(r::text) AND {column}::text LIKE 'b%%'",
    "SELECT {column}, count(*) FROM {view} AS r GROUP BY {column} HAVING leak({column}::text)",
    "SELECT * FROM {view} AS r WHERE CASE WHEN leak({column}::text) THEN 1 / (length({column}::text) - 99) > 0 END",
    "SELECT * FROM {view} AS r ORDER BY leak({column}::text), 1 LIMIT 5",
    "SELECT (SELECT max(leak(r.{column}::text)::text) FROM {view} AS r)",
    "SELECT * FROM (SELECT * FROM {view} OFFSET 0) AS r WHERE leak(r::text)",
    "SELECT * FROM {view} AS r LEFT JOIN item i ON leak(r::text || i::text)",
)


@pytest.fixture
def asked(tenants: Tenants) -> list[str]:
    """What the function `leak` was asked about; everybody may call it."""
    tenants.connection.execute(
        "CREATE FUNCTION leak(what text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE COST 0.0000001 AS"
        " $$ BEGIN RAISE NOTICE 'asked: %', what; RETURN true; END $$"
    )
    tenants.connection.execute("GRANT EXECUTE ON FUNCTION leak TO PUBLIC")
    lines: list[str] = []
    tenants.connection.add_notice_handler(lambda notice: lines.append(notice.message_primary or ""))
    return lines


def words_of(connection: Connection, view: str) -> list[str]:
    """The columns of a view."""
    rows = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
        [f"tenant_view.{view}"],
    ).fetchall()
    return [name for (name,) in rows]


@pytest.mark.parametrize("plan", PLANS, ids=range(len(PLANS)))
@pytest.mark.parametrize("login", ["api", "dashboard"])
def test_a_condition_sees_no_row_of_another_tenant(tenants: Tenants, asked: list[str], login: str, plan: str) -> None:
    """As the API and as a dashboard, over every view and column: alpha's rows are asked about, bravo's never."""
    connection = tenants.connection
    bravos = ids_of(connection, "bravo")
    dashboard = tenants.dashboard if login == "dashboard" else None
    tenant = None if dashboard else "alpha"
    for view in VIEWS:
        columns = words_of(connection, view)
        asked_of_alpha = False
        for question in QUESTIONS:
            for column in columns if "{column}" in question else columns[:1]:
                statement = SQL(question).format(view=Identifier("tenant_view", view), column=Identifier(column))
                with session(connection, login=dashboard, tenant=tenant):
                    if plan:
                        connection.execute(plan.encode())
                    with suppress(psycopg.DataError):  # the division, for a row of alpha's
                        connection.execute(statement, prepare=True)
                asked_of_alpha |= any("alpha" in line for line in asked)
                wrong = [line for line in asked if "bravo" in line or line == f"asked: {bravos.get(column)}"]
                assert wrong == [], (view, question, column)
                asked.clear()
        assert asked_of_alpha, f"the question about {view} was never asked"


def ids_of(connection: Connection, tenant: str) -> dict[str, int]:
    """By what a tenant's rows are known where they have no word of it."""
    tenant_id, gateway_id = connection.execute(
        "SELECT tenant_id, gateway_id FROM gateway JOIN tenant t USING (tenant_id) WHERE t.name = %s", [tenant]
    ).fetchone() or (0, 0)
    return {"tenant_id": tenant_id, "gateway_id": gateway_id}


def test_the_look_for_leaks_bites(tenants: Tenants, asked: list[str]) -> None:
    """Without the policies the same questions tell of bravo."""
    with tenants.connection.transaction(force_rollback=True):
        tenants.connection.execute("DROP POLICY own_tenant ON movement")
        tenants.connection.execute("CREATE POLICY anybody ON movement USING (true)")
        with session(tenants.connection, login=None, tenant="alpha"):
            tenants.connection.execute("SELECT * FROM tenant_view.movement AS r WHERE leak(r::text)")
    assert any("bravo" in line for line in asked)

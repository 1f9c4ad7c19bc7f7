"""A tenant that looks everywhere. Broken when any table, view or endpoint shows a row of another tenant's."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg
from psycopg.sql import SQL, Identifier

from cloud_api.app import create
from cloud_api.settings import ApiSettings
from tests.cloud_api.serving import Client, served
from tests.tenancy.two_tenants import OWN_SCHEMAS, Seen, Tenants, login_url, named, session, walk

OPEN = ("/healthz", "/readyz")
NOBODYS_KEY = "aaaaaaaaaa"


def changed(before: Seen, now: Seen) -> set[str]:
    """The product's own relations that show something else than before."""
    own = {name for name in before.rows.keys() | now.rows.keys() if name.partition(".")[0] in OWN_SCHEMAS}
    return {name for name in own if before.rows.get(name) != now.rows.get(name)}


def as_api(tenants: Tenants, tenant: str | None = "alpha", schemas: tuple[str, ...] | None = None) -> Seen:
    """Everything the API's role sees for a tenant."""
    with session(tenants.connection, login=None, tenant=tenant):
        return walk(tenants.connection, schemas)


def as_dashboard(tenants: Tenants, schemas: tuple[str, ...] | None = None) -> Seen:
    """Everything alpha's dashboard sees."""
    with session(tenants.connection, login=tenants.dashboard, tenant=None):
        return walk(tenants.connection, schemas)


def test_no_table_or_view_shows_another_tenants_row(tenants: Tenants) -> None:
    """As the API and as a dashboard: nothing of bravo anywhere, and alpha's rows are what they were."""
    for before, now in ((tenants.before.api, as_api(tenants)), (tenants.before.dashboard, as_dashboard(tenants))):
        assert named(now, "bravo") == {}
        assert changed(before, now) == set()
        assert len(named(now, "alpha")) >= 12
        assert {"public.movement", "public.reading", "public.frame"} <= now.refused
        assert any("_hyper_" in name for name in now.refused)
        assert not any("_hyper_" in name for name in now.rows)


def test_every_table_is_protected(tenants: Tenants) -> None:
    """A table that a later migration adds must say whose its rows are (protect_tenant_rows), or be named here."""
    open_tables = tenants.connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
        " AND NOT (relrowsecurity AND relforcerowsecurity) AND relname NOT LIKE '%yoyo%' ORDER BY 1"
    ).fetchall()
    assert open_tables == []
    views = tenants.connection.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'v' AND relnamespace IN ('public'::regnamespace,"
        " 'tenant_view'::regnamespace) AND NOT coalesce(reloptions @> '{security_invoker=true}', false) ORDER BY 1"
    ).fetchall()
    owners = tenants.connection.execute(
        "SELECT viewname FROM pg_views WHERE viewowner = 'stocktide_reader' ORDER BY 1"
    ).fetchall()
    assert views == owners == [("frame",), ("movement",), ("reading",)]
    bypassing = tenants.connection.execute(
        "SELECT rolname FROM pg_roles WHERE rolname LIKE 'stocktide%' AND (rolbypassrls OR rolsuper OR rolcanlogin)"
    ).fetchall()
    assert bypassing == []


def test_the_walk_bites(tenants: Tenants) -> None:
    """With the policies of any one table out of force the walk finds bravo's rows: it looks at every table."""
    connection = tenants.connection
    granted = connection.execute(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relrowsecurity"
        " AND (has_any_column_privilege('stocktide_api', c.oid, 'SELECT')"
        " OR has_any_column_privilege('stocktide_reader', c.oid, 'SELECT')) AND c.relname <> 'metric' ORDER BY 1"
    ).fetchall()
    assert len(granted) >= 20
    blind = []
    for (table,) in granted:
        with connection.transaction(force_rollback=True):
            connection.execute(SQL("DROP POLICY own_tenant ON {}").format(Identifier(table)))
            connection.execute(SQL("CREATE POLICY anybody ON {} USING (true)").format(Identifier(table)))
            seen = as_api(tenants, schemas=OWN_SCHEMAS)
            if not changed(tenants.before.api, seen):
                blind.append(table)
    # Column grants keep this one from a walk by whole rows; the walk over the endpoints looks at it.
    assert blind == ["api_key"]


def test_without_a_tenant_nothing_is_seen(tenants: Tenants) -> None:
    """A transaction that forgot to say whose it is shows nothing rather than everything."""
    seen = as_api(tenants, tenant=None, schemas=OWN_SCHEMAS)
    assert {name: rows for name, rows in seen.rows.items() if rows} == {"public.lot": ['(0,,"")']}


def test_a_dashboard_cannot_become_another_tenant(tenants: Tenants) -> None:
    """It really logs in, tries the setting of the API and the roles, and writes nothing."""
    with closing(psycopg.connect(login_url(tenants.connection, tenants.dashboard), autocommit=True)) as dashboard:
        names = "SELECT name FROM tenant"
        assert dashboard.execute(names).fetchall() == [("alpha",)]
        for number in range(1, 6):
            dashboard.execute("SELECT set_config('stocktide.tenant_id', %s, false)", [str(number)])
            assert dashboard.execute(names).fetchall() == [("alpha",)]
        for role in ("stocktide_api", "stocktide_ingest", "stocktide_owner", "stocktide_reader"):
            with pytest.raises(pg.InsufficientPrivilege):
                dashboard.execute(SQL("SET ROLE {}").format(Identifier(role)))
        dashboard.execute("SET default_transaction_read_only = off")
        for statement in (
            "UPDATE item SET name = 'x'",
            "DELETE FROM audit_log",
            "CREATE TABLE t ()",
            "SELECT digest FROM api_key",
            "SELECT stocktide_key('x', 'y')",
            "SELECT stocktide_tenant_named('bravo')",
            "UPDATE item SET merged_into = 1",
        ):
            with pytest.raises(pg.InsufficientPrivilege):
                dashboard.execute(statement)
        # What was booked under a name that stands for another is shown under that: no name leads to the other tenant.
        stock = dashboard.execute("SELECT site, sku, on_hand FROM stock WHERE NOT virtual ORDER BY 3").fetchall()
        assert stock == [("alpha-site", "alpha-sku", 2), ("alpha-site", "alpha-sku", 5)]
        assert dashboard.execute("SELECT device, metric, value FROM measured").fetchall() == [
            ("alpha-probe", "alpha_temperature", 4.5)
        ]
        moved = dashboard.execute("SELECT sku, quantity, destination FROM moved ORDER BY 2").fetchall()
        assert moved == [("alpha-sku", 2, "alpha-shelf"), ("alpha-sku", 7, "alpha-shelf")]


def requests(document: Any, key: str, word: str) -> Iterator[tuple[str, str, Any]]:
    """Every operation of the OpenAPI document, about one's own things and about another's: (method, path, body)."""
    for path, operations in document["paths"].items():
        if path in OPEN:
            continue
        for method, operation in operations.items():
            body = {"name": "walker", "days": 1} if "requestBody" in operation else None
            filled = path.replace("{prefix}", key)
            assert "{" not in filled, f"the walk does not know how to ask for {path}"
            yield method.upper(), filled, body
            known = {
                "site": f"{word}-site",
                "sku": f"{word}-sku",
                "location": f"{word}-shelf",
                "gateway": f"gw-{word}",
            }
            for parameter in operation.get("parameters", []):
                if parameter["name"] in known:
                    yield method.upper(), f"{filled}?{parameter['name']}={known[parameter['name']]}&virtual=true", body


def asked(client: Client, headers: dict[str, str], key: str, word: str) -> dict[str, tuple[int, str]]:
    """The answers to all of that, under the requests without the word and the key."""
    document = client.get("/openapi.json").json()
    answers = {}
    for method, path, body in requests(document, key, word):
        answer = client.ask(method, path, headers, body)
        answers[f"{method} {path}".replace(word, "WORD").replace(key, "KEY")] = (
            answer.status,
            answer.text.replace(word, "WORD").replace(key, "KEY"),
        )
    return answers


def test_no_endpoint_tells_of_another_tenant(tenants: Tenants, database_url: str) -> None:
    """Asked for bravo's things, the API answers alpha as it does about what does not exist at all."""
    headers = {"Authorization": f"Bearer {tenants.alpha.key}"}
    with served(create(ApiSettings(database_url=database_url))) as client:
        about_bravo = asked(client, headers, tenants.bravo.prefix, "bravo")
        about_nothing = asked(client, headers, NOBODYS_KEY, "zzzzz")
        assert len(about_bravo) >= 14
        for question, (status, text) in about_bravo.items():
            assert "bravo" not in text, question
            assert status == about_nothing[question][0], question
            if not question.startswith(("POST", "GET /v1/keys", "GET /v1/audit")):
                assert text == about_nothing[question][1], question
        assert client.get("/v1/stock", headers | {"X-Stocktide-Tenant": "bravo"}).status == 403
        for table in ("api_key", "tenant"):
            tenants.connection.execute(SQL("ALTER TABLE {} DISABLE ROW LEVEL SECURITY").format(Identifier(table)))
        assert "bravo" in client.get("/v1/keys", headers).text, "the walk would find a missing policy"

"""Quotas, the request limit and the audit log. Broken when a limit is not one for all processes, or lines change."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
from psycopg import errors as pg
from typer.testing import CliRunner, Result

from cloud_cli.app import app
from cloud_store.base import audit_log
from cloud_store.base.connection import Connection, connect
from cloud_store.base.errors import QuotaExceeded
from cloud_store.tenancy import quotas, registry
from stocktide.demo.servers import free_port
from testbed.eventually import eventually
from testbed.store import MergeSession, StoreModule
from tests.cloud_api.serving import Answer, Client, key
from tests.cloud_store.histories import NOW_MS, Chain, movement
from wire_protocol import clock

Run = Callable[..., Result]


@pytest.fixture
def run(database_url: str) -> Run:
    """Run a command against the test's database."""
    return lambda words: CliRunner().invoke(app, words.split(), env={"STOCKTIDE_DATABASE_URL": database_url})


@contextmanager
def api_process(database_url: str) -> Iterator[Client]:
    """The API as a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "stocktide", "cloud", "api", "--port", str(port)]
    environment = os.environ | {
        "STOCKTIDE_DATABASE_URL": database_url,
        "STOCKTIDE_API_REQUESTS_PER_MINUTE_MAX": "10",
    }
    process = subprocess.Popen(command, env=environment)
    client = Client(f"http://127.0.0.1:{port}")
    try:
        eventually(lambda: _is_ready(client))
        yield client
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(client: Client) -> bool:
    try:
        return client.get("/readyz").status == 200
    except OSError:
        return False


def _in_one_minute(ask: Callable[[int], Answer], times: int) -> list[Answer]:
    """So many answers of the same clock minute: begins afresh when the minute ends on the way."""
    answers: list[Answer] = []
    while len(answers) < times:
        answer = ask(len(answers))
        if answers and int(answer.headers["RateLimit-Reset"]) > int(answers[-1].headers["RateLimit-Reset"]):
            answers = []
        if not answers and answer.headers["RateLimit-Remaining"] != "9":
            continue  # the first of a minute, which may have begun before
        answers.append(answer)
    return answers


@pytest.mark.bound("api.requests_per_minute_max")
def test_two_api_processes_share_one_limit(connection: Connection, database_url: str, run: Run) -> None:
    """Ten a minute are ten, whichever process answers; then 429 says when to come again; others are not held up."""
    for tenant in ("acme", "other"):
        registry.add_tenant(connection, tenant)
    headers = key(connection, "acme")
    assert run("tenant quota other --requests-per-minute 600").exit_code == 0
    with ExitStack() as processes:
        clients = [processes.enter_context(api_process(database_url)) for _ in range(2)]

        def ask(number: int) -> Answer:
            return clients[number % 2].get("/v1/stock", headers)

        answers = _in_one_minute(ask, 12)
        assert [answer.status for answer in answers] == [200] * 10 + [429] * 2
        assert [answer.headers["RateLimit-Remaining"] for answer in answers] == [*map(str, range(9, -1, -1)), "0", "0"]
        last = answers[-1]
        assert last.headers["RateLimit-Policy"] == '"tenant";q=10;w=60'
        assert last.headers["RateLimit"] == f'"tenant";r=0;t={last.headers["RateLimit-Reset"]}'
        assert 1 <= int(last.headers["Retry-After"]) <= 60
        assert last.content_type == "application/problem+json"
        other = clients[0].get("/v1/stock", key(connection, "other"))
        assert (other.status, other.headers["RateLimit-Limit"]) == (200, "600")


def test_gateways_and_devices_are_refused_beyond_the_quota(connection: Connection, run: Run) -> None:
    """At registration, with what to do about it; what a ledger mentions is taken all the same, and counts."""
    for words in (
        "tenant add acme",
        "site add berlin -t acme",
        "tenant quota acme --gateways 1 --devices 2",
        "gateway add gw-1 -t acme -s berlin",
        "device add till-1 -g gw-1",
    ):
        assert run(words).exit_code == 0, words
    refused = run("gateway add gw-2 -t acme -s berlin")
    assert (refused.exit_code, "has 1 gateways of 1 allowed" in refused.stderr) == (2, True)
    entry = movement(clock.pack(NOW_MS), "receive", "@supplier", "A-1", device="till-2")
    with closing(MergeSession(connection.info.dsn)) as merger:
        assert merger.merge([Chain("gw-1").seal([entry])]).movements == 1
    refused = run("device add till-3 -g gw-1")
    assert (refused.exit_code, "--devices 3" in refused.stderr) == (2, True)
    assert run("tenant quota acme --devices -1").exit_code == 0
    assert run("device add till-3 -g gw-1").exit_code == 0


def test_two_registrations_at_once_cannot_both_take_the_last_place(connection: Connection, database_url: str) -> None:
    """The second waits for the first to commit, and counts again."""
    registry.add_tenant(connection, "acme")
    registry.add_site(connection, "acme", "berlin")
    tenant_id = registry.tenant_id(connection, "acme")
    quotas.change(connection, tenant_id, "acme", {"gateways_max": 1})
    with connect(database_url, application="test") as other:
        other.execute("SET lock_timeout = 100")
        with connection.transaction():
            registry.add_gateway(connection, "acme", "berlin", "gw-1")
            with pytest.raises(Exception, match="lock timeout"):
                registry.add_gateway(other, "acme", "berlin", "gw-2")
        with pytest.raises(QuotaExceeded):
            registry.add_gateway(other, "acme", "berlin", "gw-2")


def test_workers_share_one_purse(connection: Connection, database_url: str) -> None:
    """What one has merged the other knows of; debts are paid back with time; no quota, no purse."""
    for tenant in ("acme", "free"):
        registry.add_tenant(connection, tenant)
    acme, free = (registry.tenant_id(connection, tenant) for tenant in ("acme", "free"))
    quotas.change(connection, acme, "acme", {"entries_per_s_max": 100})
    with closing(StoreModule(quotas, database_url)) as one, closing(StoreModule(quotas, database_url)) as two:
        assert one.charge({acme: 0, free: 0}) == {acme: (200.0, 100.0)}
        assert one.charge({acme: 5_000})[acme].entries == pytest.approx(-4_800, abs=50)
        assert two.charge({acme: 1_000, free: 10**6})[acme].entries == pytest.approx(-5_800, abs=50)
        connection.execute("UPDATE ingest_credit SET at = at - interval '30 seconds'")
        assert two.charge({acme: 0})[acme].entries == pytest.approx(-2_800, abs=50)
        connection.execute("UPDATE ingest_credit SET at = at - interval '1 day'")
        assert one.charge({acme: 0})[acme].entries == 200.0


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET actor = 'nobody'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
def test_the_audit_log_cannot_be_changed(connection: Connection, statement: str) -> None:
    """Not even by a superuser who does not take the trigger away; and no role of ours has the right to try."""
    registry.add_tenant(connection, "acme")
    with pytest.raises(pg.InsufficientPrivilege, match="append-only"):
        connection.execute(statement.encode())
    for role in ("stocktide_owner", "stocktide_ingest", "stocktide_api", "stocktide_dashboard"):
        with connection.transaction(force_rollback=True):
            connection.execute(f"SET LOCAL ROLE {role}".encode())
            with pytest.raises(pg.InsufficientPrivilege, match="permission denied"):
                connection.execute(statement.encode())
    assert [line["action"] for line in audit_log.newest(connection, limit=10)] == ["tenant.add"]


def test_every_administrative_command_leaves_a_line(run: Run, connection: Connection, unique_name: Any) -> None:
    """Who, what and on which object, for each command that changes something; what failed leaves none."""
    login = unique_name("dash").replace("-", "_")
    commands = {
        "tenant add acme": ("tenant.add", "acme"),
        "site add berlin -t acme": ("site.add", "berlin"),
        "gateway add gw-1 -t acme -s berlin": ("gateway.add", "gw-1"),
        "gateway disable gw-1": ("gateway.disabled", "gw-1"),
        "gateway enable gw-1": ("gateway.active", "gw-1"),
        "device add till-1 -g gw-1": ("device.add", "till-1"),
        "item add screw -t acme": ("item.add", "screw"),
        "tenant quota acme --devices 5": ("tenant.quota", "acme"),
        "ledger rebuild -t acme": ("ledger.rebuild", "berlin"),
        f"database-user create {login} -t acme": ("database-user.create", login),
        f"database-user drop {login}": ("database-user.drop", login),
    }
    for words in commands:
        result = run(words)
        assert result.exit_code == 0, result.output
    assert run("tenant add acme").exit_code == 2
    made = run("key create till -t acme --json")
    prefix = made.stdout.split('"prefix": "')[1][:10]
    assert run(f"key revoke {prefix}").exit_code == 0
    lines = audit_log.newest(connection, limit=100)
    done = [(line["action"], line["object"]) for line in reversed(lines)]
    assert done == [*commands.values(), ("key.create", prefix), ("key.revoke", prefix)]
    assert {line["tenant"] for line in lines} == {"acme"}
    assert all(line["actor"].startswith("cli:") and line["login"] == "postgres" for line in lines)
    shown = run("audit list --tenant acme")
    assert (shown.exit_code, "database-user.create" in shown.stdout) == (0, True)


def test_a_key_is_printed_once(run: Run) -> None:
    """The list has prefix, role and state; the secret is nowhere but in what `create` printed."""
    assert run("tenant add acme").exit_code == 0
    made = run("key create till -t acme --role operator --scope stock:read")
    secret = made.stdout.strip()
    listed = run("key list")
    assert secret.startswith("stk_")
    assert secret.split("_")[1] in listed.stdout
    assert secret.split("_", 2)[2] not in listed.stdout + run("audit list").stdout
    for words in (
        "key create x -t acme --role root",
        "key create x -t acme --scope all",
        "key revoke nothing",
        "key create x -t acme --days 0",
        "database-user create stocktide_x -t acme",
    ):
        assert run(words).exit_code == 2, words

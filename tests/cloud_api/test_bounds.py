"""What requests may cost. Broken when one tenant's are everybody's wait, or a body is read from anyone."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

from cloud_api.app import create
from cloud_api.bounds import TenantBudget, TenantBusy
from cloud_api.settings import ApiSettings
from cloud_store.base.connection import Connection, connect
from cloud_store.tenancy import api_keys, registry
from testbed.eventually import eventually
from testbed.hand_clock import HandClock
from tests.cloud_api.serving import Client, key, served

BODY_BYTES_MAX = 2_048
ENDLESS_BYTES = 64 * 1024 * 1024


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """The tenants acme and other exist."""
    with closing(connect(database_url, application="test")) as opened:
        for tenant in ("acme", "other"):
            registry.add_tenant(opened, tenant)
            registry.add_site(opened, tenant, "berlin")
        yield opened


@pytest.fixture
def client(connection: Connection, database_url: str) -> Iterator[Client]:
    """An API with four connections, of which a tenant may hold two."""
    del connection
    settings = ApiSettings(
        database_url=database_url,
        connections_max=4,
        connections_per_tenant_max=2,
        connection_wait_s_max=20,
        body_bytes_max=BODY_BYTES_MAX,
    )
    with served(create(settings)) as made:
        yield made


@pytest.mark.bound("api.connections_per_tenant_max")
def test_a_tenants_slow_requests_leave_the_others_their_connections(
    client: Client, connection: Connection, database_url: str
) -> None:
    """Sixteen requests that the database does not finish: two hold a connection, the others are answered at once."""
    slow, quiet = key(connection, "acme"), key(connection, "other")
    statuses: list[int] = []
    with connect(database_url, application="holder") as holder, holder.transaction():
        holder.execute("LOCK TABLE gateway_status IN ACCESS EXCLUSIVE MODE")  # what `GET /v1/gateways` reads
        asking = [
            threading.Thread(target=lambda: statuses.append(client.get("/v1/gateways", slow).status)) for _ in range(16)
        ]
        for thread in asking:
            thread.start()
        eventually(lambda: statuses.count(429) == 14, explain=lambda: statuses)
        refused = client.get("/v1/stock", slow)
        assert refused.status == 429
        assert "at work" in refused.json()["detail"]
        assert int(refused.headers["Retry-After"]) >= 1
        for _ in range(20):
            assert client.get("/v1/stock", quiet).status == 200
    for thread in asking:
        thread.join()
    assert sorted(statuses) == [200] * 2 + [429] * 14
    assert client.get("/v1/gateways", slow).status == 200


@pytest.mark.bound("api.database_share_per_tenant")
def test_database_time_is_a_budget_that_fills_again() -> None:
    """Of one tenant: another's is untouched."""
    clock = HandClock()
    budget = TenantBudget(connections_max=8, share=0.5, now_s=lambda: clock.mono_ms() / 1_000)
    for _ in range(3):
        with budget.spending(1):
            clock.turn(8_000)
    with pytest.raises(TenantBusy, match="share of the database's time") as refused, budget.spending(1):
        pass
    with budget.spending(2):
        pass
    clock.turn(refused.value.retry_after_s * 1_000)
    with budget.spending(1):
        pass


def test_a_tenant_that_has_spent_much_asks_one_thing_at_a_time() -> None:
    """A dashboard's page asks several at once; a tenant whose questions are dear holds one of the server's cores."""
    clock = HandClock()
    budget = TenantBudget(connections_max=2, share=0.5, now_s=lambda: clock.mono_ms() / 1_000)
    with budget.spending(1), budget.spending(1):
        clock.turn(4_000)
    with budget.spending(1), pytest.raises(TenantBusy, match="1 requests"), budget.spending(1):
        pass
    clock.turn(4_000)
    with budget.spending(1), budget.spending(1):
        pass


def test_what_a_failed_request_held_is_given_back() -> None:
    """However it ends."""
    budget = TenantBudget(connections_max=1, share=1.0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), budget.spending(1):
            _ = 1 / 0
    with budget.spending(1), pytest.raises(TenantBusy, match="1 requests"), budget.spending(1):
        pass


@pytest.mark.bound("api.body_bytes_max")
def test_a_body_ends_at_its_bound_before_anybody_is_asked_who_it_is(client: Client) -> None:
    """Declared or in chunks without an end, with and without a credential; the process goes on."""
    long = client.ask("POST", "/v1/keys", document={"name": "x" * BODY_BYTES_MAX})
    assert (long.status, long.content_type) == (413, "application/problem+json")
    assert str(BODY_BYTES_MAX) in long.json()["detail"]
    address = urlsplit(client.base)
    with socket.create_connection((address.hostname, address.port), timeout=60) as raw:
        raw.sendall(b"POST /v1/keys HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        raw.settimeout(60)
        sent = 0
        with suppress(OSError):  # it hangs up
            while sent < ENDLESS_BYTES:
                raw.sendall(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
                sent += 0x1000
    assert sent < ENDLESS_BYTES
    short = client.ask("POST", "/v1/keys", document={"name": "till"})
    assert short.status == 401, "a short body goes on to the credential"


def test_a_body_in_which_a_name_stands_twice_is_refused_by_name(client: Client) -> None:
    """The parser takes the last of two roles: what a person read first in the request was another key."""
    twice = b'{"name": "till", "role": "viewer", "role": "admin"}'
    headers = {"Content-Type": "application/json"}
    asked = Request(f"{client.base}/v1/keys", data=twice, headers=headers, method="POST")  # noqa: S310 - ours
    with pytest.raises(HTTPError) as refused:
        urlopen(asked, timeout=60)  # noqa: S310 - ours
    with refused.value as answer:
        assert answer.code == 422
        assert "role: the name stands twice" in answer.read().decode()


def test_a_key_ends_with_the_key_that_made_it(client: Client, connection: Connection) -> None:
    """It cannot outlive it, and is revoked with it, over generations; nobody else's is."""
    mother = key(connection, "acme", days=2)
    other = key(connection, "acme", days=2)

    def child(of: dict[str, str], days: float = 3_660) -> tuple[dict[str, str], str, str]:
        made = client.ask("POST", "/v1/keys", of, {"name": "child", "role": "admin", "days": days})
        assert made.status == 201, made.text
        body = made.json()
        return {"Authorization": f"Bearer {body['key']}"}, body["prefix"], body["expires_at"]

    daughter, prefix, expires_at = child(mother)
    granddaughter, _, _ = child(daughter)
    stranger, _, _ = child(other)
    rows = {row["prefix"]: row["expires_at"] for row in client.get("/v1/keys", mother).json()}
    assert rows[prefix] == expires_at <= max(rows.values())
    mothers = mother["Authorization"].split("_")[1]
    assert expires_at == rows[mothers]
    assert client.ask("DELETE", f"/v1/keys/{mothers}", other).status == 204
    for gone in (mother, daughter, granddaughter):
        assert client.get("/v1/stock", gone).status == 401
    for kept in (other, stranger):
        assert client.get("/v1/stock", kept).status == 200


def test_keys_are_bounded_and_read_in_pages(
    client: Client, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of a million scopes was once accepted, and read back at every look."""
    mother = key(connection, "acme")
    endless = client.ask("POST", "/v1/keys", mother, {"name": "x", "scopes": ["stock:read"] * 50})
    assert endless.status == 422
    twice = client.ask("POST", "/v1/keys", mother, {"name": "x", "scopes": ["stock:read", "stock:read"]})
    assert twice.status == 201
    for _ in range(4):
        assert client.ask("POST", "/v1/keys", mother, {"name": "more"}).status == 201
    whole = [row["prefix"] for row in client.get("/v1/keys", mother).json()]
    pages: list[str] = []
    while page := client.get("/v1/keys", mother, limit=2, **({"after": pages[-1]} if pages else {})).json():
        pages += [row["prefix"] for row in page]
    assert pages == whole
    assert len(pages) == 6
    monkeypatch.setattr(api_keys, "KEYS_MAX", 6)
    full = client.ask("POST", "/v1/keys", mother, {"name": "one too many"})
    assert full.status == 403
    assert "at most 6 keys" in full.json()["detail"]

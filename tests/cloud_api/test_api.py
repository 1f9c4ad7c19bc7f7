"""The HTTP API on real TimescaleDB. Broken when a tenant sees another's rows, or pages repeat or lose rows."""

import base64
import json
from collections.abc import Iterator
from contextlib import closing

import pytest

from cloud_api.app import create
from cloud_api.settings import ApiSettings
from cloud_store.base.connection import connect
from cloud_store.tenancy import registry
from stocktide.demo.servers import free_port
from testbed.store import MergeSession
from tests.cloud_api.serving import Client, key, served
from tests.cloud_store.histories import NOW_MS, Chain, count, movement
from wire_protocol import clock

# The headers of both tenants' administrators; each test's database has its own keys, so the fixture fills them in.
ACME: dict[str, str] = {}
OTHER: dict[str, str] = {}


def cursor(*key: object) -> str:
    """A page cursor as a hostile reader would forge it."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


@pytest.fixture
def client(database_url: str) -> Iterator[Client]:
    """An API over two tenants that have the same SKU at shelves of the same name."""
    with (
        closing(connect(database_url, application="test")) as connection,
        closing(MergeSession(database_url)) as merger,
    ):
        for tenant in ("acme", "other"):
            registry.add_tenant(connection, tenant)
            registry.add_site(connection, tenant, "berlin")
            registry.add_gateway(connection, tenant, "berlin", f"gw-{tenant}")
        for tenant, number in (("acme", 25), ("other", 3)):
            hlcs = [clock.pack(NOW_MS, n) for n in range(number)]
            entries = [movement(hlc, "receive", "@supplier", f"A-{n % 9}") for n, hlc in enumerate(hlcs)]
            merger.merge([Chain(f"gw-{tenant}").seal([*entries, count(hlcs[-1] + 1, "A-0", 50)])])
        ACME.update(key(connection, "acme"))
        OTHER.update(key(connection, "other"))
    with served(create(ApiSettings(database_url=database_url))) as made:
        yield made


def test_a_tenant_sees_its_own_rows_only(client: Client) -> None:
    """The same question gives each tenant its own answer."""
    for headers, movements, gateway in ((ACME, 25, "gw-acme"), (OTHER, 3, "gw-other")):
        assert len(client.get("/v1/movements", headers=headers).json()["items"]) == movements
        listed = client.get("/v1/gateways", headers=headers).json()["items"]
        assert [row["gateway"] for row in listed] == [gateway]
    stock = client.get("/v1/stock", ACME, location="A-0").json()["items"]
    assert [(row["sku"], row["on_hand"]) for row in stock] == [("screw", 50)]
    assert client.get("/v1/movements", ACME, gateway="gw-other").json()["items"] == []


@pytest.mark.parametrize("path", ["/v1/stock", "/v1/movements", "/v1/gateways"])
def test_pages_together_are_the_whole(client: Client, path: str) -> None:
    """Following `next` gives every row once, in the order of one big page; equal times included."""
    whole = client.get(path, ACME, limit=1000).json()
    pages, after = [], None
    while True:
        page = client.get(path, ACME, limit=4, **({"after": after} if after else {})).json()
        pages += page["items"]
        after = page["next"]
        if after is None:
            break
    assert pages == whole["items"]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/stock", {}, 401),
        ("/v1/stock?after=AAAA", ACME, 400),
        ("/v1/stock?sku=a%00b", ACME, 422),
        ("/v1/gateways?site=%00", ACME, 422),
        (f"/v1/gateways?after={cursor('a' + chr(0))}", ACME, 400),
        (f"/v1/gateways?after={cursor(chr(0xD800))}", ACME, 400),
        (f"/v1/stock?after={cursor(1 << 63, 1, 1)}", ACME, 400),
        (f"/v1/movements?after={cursor('yesterday', 1, 1, 1)}", ACME, 400),
        (f"/v1/movements?after={cursor('2026-01-01', 1, 1, 1)}", ACME, 400),
        ("/v1/movements?after=WyJ4IiwxXQ", ACME, 400),
        ("/v1/movements?limit=100000", ACME, 422),
        ("/v1/movements?kind=steal", ACME, 422),
        ("/v1/movements?since=2026-11-21T10:00:00", ACME, 422),
        ("/v1/nothing", ACME, 404),
    ],
)
def test_errors_are_problem_documents(client: Client, path: str, headers: dict[str, str], status: int) -> None:
    """RFC 9457, for our own errors and the framework's."""
    response = client.get(path, headers=headers)
    assert (response.status, response.content_type) == (status, "application/problem+json")
    assert response.json()["status"] == status


def test_health_and_openapi(client: Client) -> None:
    """Every endpoint under /v1 asks for a credential in the OpenAPI document, and no other does."""
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}
    assert client.get("/metrics").status == 404
    paths = client.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            assert path.startswith("/v1/") == bool(operation.get("security")), path


@pytest.mark.bound("api.connection_wait_s_max")
def test_without_a_database_the_process_is_healthy_and_not_ready() -> None:
    """It starts, says so, and tells nothing about the database's address."""
    settings = ApiSettings(database_url="postgresql://127.0.0.1:1/secret", connection_wait_s_max=0.2)
    with served(create(settings)) as client:
        assert client.get("/healthz").status == 200
        response = client.get("/readyz")
    assert response.status == 503
    assert "127.0.0.1" not in response.text


def test_metrics_have_a_port_of_their_own() -> None:
    """Whoever can reach the API must not see how busy the others are."""
    port = free_port()
    settings = ApiSettings(database_url="postgresql://127.0.0.1:1/none", metrics_port=port)
    with served(create(settings)) as client:
        client.get("/healthz")
        figures = Client(f"http://127.0.0.1:{port}").get("/metrics").text
    assert 'stocktide_api_request_seconds_count{route="/healthz",status="200"} 1.0' in figures

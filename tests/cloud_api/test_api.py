"""The HTTP API on real TimescaleDB. Broken when a tenant sees another's rows, or pages repeat or lose rows."""

import base64
import json
from collections.abc import Iterator
from contextlib import closing

import pytest

from cloud_api.app import create
from cloud_api.settings import ApiSettings
from cloud_store.base.connection import connect
from cloud_store.merge import alarms
from cloud_store.merge.alarms import Alarm, AlarmKind
from cloud_store.tenancy import registry
from stocktide.demo.servers import free_port
from testbed.store import MergeSession
from tests.cloud_api.serving import Client, key, served
from tests.cloud_store.histories import NOW_MS, Chain, count, movement
from wire_protocol import clock
from wire_protocol.catalog import CatalogItem

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
        ("/v1/movements?kinds=pick", ACME, 422),
        ("/v1/stock?sku=tea&sku=tea", ACME, 422),
        ("/v1/movements?since=2026-11-21T10:00:00", ACME, 422),
        ("/v1/nothing", ACME, 404),
    ],
)
def test_errors_are_problem_documents(client: Client, path: str, headers: dict[str, str], status: int) -> None:
    """RFC 9457, for our own errors and the framework's."""
    response = client.get(path, headers=headers)
    assert (response.status, response.content_type) == (status, "application/problem+json")
    assert response.json()["status"] == status
    assert not any(part in response.text for part in ("[^", "(?:", "\\x")), "a regular expression is no sentence"


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


@pytest.fixture
def registered(client: Client, database_url: str) -> Client:
    """Items, places and alarms of both tenants."""
    with closing(connect(database_url, application="test")) as connection:
        for tenant in ("acme", "other"):
            items = [CatalogItem(sku=f"{tenant}-{n:02}", name=f"Tea 100% {n}", gtin=None) for n in range(12)]
            registry.add_items(connection, tenant, items)
            registry.add_locations(connection, tenant, "berlin", [f"{tenant}_{n}" for n in range(5)])
            for kind in (AlarmKind.FORK, AlarmKind.STOCK_DIFFERS):
                alarms.raise_all(connection, [Alarm(f"gw-{tenant}", kind, f"{tenant}: {kind}")])
    return client


@pytest.mark.parametrize("path", ["/v1/items", "/v1/locations", "/v1/sites", "/v1/alarms"])
def test_what_is_registered_is_read_in_pages_and_by_its_tenant_alone(registered: Client, path: str) -> None:
    """Every row once, none of another's; a forged cursor is refused."""
    whole = registered.get(path, ACME, limit=1000).json()
    assert whole["items"]
    assert "other-" not in json.dumps(whole)
    assert "other_" not in json.dumps(whole)
    pages, after = [], None
    while True:
        page = registered.get(path, ACME, limit=1, **({"after": after} if after else {})).json()
        pages += page["items"]
        after = page["next"]
        if after is None:
            break
    assert pages == whole["items"]
    assert registered.get(path, ACME, after=cursor({"no": "key"})).status == 400
    assert registered.get(path).status == 401


def test_items_and_places_are_found_by_a_part_of_their_names(registered: Client) -> None:
    """As it is written: % and _ are no wildcards."""
    found = registered.get("/v1/items", ACME, search="TEA 100% 1").json()["items"]
    assert [row["sku"] for row in found] == ["acme-01", "acme-10", "acme-11"]
    assert registered.get("/v1/items", ACME, search="Te_").json()["items"] == []
    assert [row["location"] for row in registered.get("/v1/locations", ACME, search="e_3").json()["items"]] == [
        "acme_3"
    ]
    assert registered.get("/v1/locations", ACME, site="paris").json()["items"] == []


def test_an_alarm_says_what_to_do(registered: Client) -> None:
    """The latest first, with advice."""
    rows = registered.get("/v1/alarms", ACME).json()["items"]
    assert [row["kind"] for row in rows] == ["stock-differs", "fork"]
    assert all(row["advice"] and row["gateway"] == "gw-acme" for row in rows)

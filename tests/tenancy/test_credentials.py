"""Keys and tokens over HTTP. Broken when a credential that should be refused is let in, or lets in too much."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from cloud_api.app import create
from cloud_api.oidc import KeySet, ProviderUnavailable
from cloud_api.settings import ApiSettings
from cloud_store.base.connection import Connection
from cloud_store.base.errors import InvalidName
from cloud_store.tenancy import api_keys, permissions, registry
from tests.cloud_api.serving import Client, key, served
from tests.tenancy.tokens import AUDIENCE, ISSUER, Provider

Api = Callable[..., Client]


@pytest.fixture
def connection(connection: Connection) -> Connection:
    """The tenants acme and other exist."""
    for tenant in ("acme", "other"):
        registry.add_tenant(connection, tenant)
        registry.add_site(connection, tenant, f"{tenant}-site")
        registry.add_gateway(connection, tenant, f"{tenant}-site", f"gw-{tenant}")
    return connection


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """An identity provider."""
    made = Provider()
    with made.served():
        yield made


@pytest.fixture
def client(connection: Connection, database_url: str, provider: Provider) -> Iterator[Client]:
    """The API, which knows the provider."""
    del connection
    settings = ApiSettings(
        database_url=database_url, oidc_issuer=ISSUER, oidc_audience=AUDIENCE, oidc_jwks_url=provider.url
    )
    with served(create(settings)) as made:
        yield made


def bearer(token: str) -> dict[str, str]:
    """The header."""
    return {"Authorization": f"Bearer {token}"}


def test_a_key_works_until_it_is_revoked(connection: Connection, client: Client) -> None:
    """And leaves when it was last used, but never its secret, in the database."""
    made = api_keys.create(
        connection, registry.tenant_id(connection, "acme"), name="till", role="viewer", lifetime=timedelta(hours=1)
    )
    assert client.get("/v1/stock", bearer(made.key)).status == 200
    (row,) = api_keys.listed(connection, "acme")
    assert (row["prefix"], row["state"], row["last_used_at"] is not None) == (made.prefix, "active", True)
    stored = connection.execute("SELECT k::text FROM api_key k").fetchall()
    assert made.key.rpartition("_")[2] not in str(stored)
    api_keys.revoke(connection, made.prefix)
    refused = client.get("/v1/stock", bearer(made.key))
    assert (refused.status, refused.json()["detail"]) == (401, "The key was revoked.")
    assert refused.headers["www-authenticate"].startswith("Bearer")


def test_keys_that_must_not_open(connection: Connection, client: Client) -> None:
    """Expired, cut, with another's secret, or nothing like a key."""
    good = key(connection, "acme")["Authorization"].removeprefix("Bearer ")
    other = key(connection, "other")["Authorization"].removeprefix("Bearer ")
    connection.execute("UPDATE api_key SET expires_at = now() - interval '1 second' WHERE name LIKE 'technician%'")
    expired = key(connection, "acme", "technician")
    connection.execute("UPDATE api_key SET expires_at = now() - interval '1 second' WHERE name LIKE 'technician%'")
    assert client.get("/v1/stock", expired).json()["detail"] == "The key has expired."
    swapped = "_".join([*good.split("_", 2)[:2], other.split("_", 2)[2]])
    for wrong in (good[:-1], good + "x", swapped, "stk_", "stk_aaaaaaaaaa_" + "A" * 43, "nonsense", "x" * 20_000):
        assert client.get("/v1/stock", bearer(wrong)).status == 401
    for header in ({}, {"Authorization": good}, {"Authorization": f"Basic {good}"}):
        assert client.get("/v1/stock", header).status == 401


def test_roles_and_scopes_bound_what_a_key_opens(connection: Connection, client: Client) -> None:
    """Each role opens what the one table says, and a scope only takes away."""
    needed = {
        "/v1/stock": "stock:read",
        "/v1/movements": "movements:read",
        "/v1/gateways": "gateways:read",
        "/v1/quota": "quota:read",
        "/v1/keys": "keys:read",
        "/v1/audit": "audit:read",
    }
    for role in permissions.ROLES:
        headers = key(connection, "acme", role)
        opened = {path for path in needed if client.get(path, headers).status == 200}
        assert opened == {path for path, permission in needed.items() if permission in permissions.of(role)}
    scoped = key(connection, "acme", "admin", scopes=["stock:read"])
    assert [path for path in needed if client.get(path, scoped).status == 200] == ["/v1/stock"]
    assert client.get("/v1/keys", scoped).json()["detail"] == "This needs keys:read, which the role admin has."
    with pytest.raises(InvalidName, match="no scope"):
        key(connection, "acme", "admin", scopes=["stock:write"])


def test_a_key_speaks_for_its_own_tenant_only(connection: Connection, client: Client) -> None:
    """Naming another tenant beside it is refused, not obeyed."""
    headers = key(connection, "acme")
    assert client.get("/v1/stock", headers | {"X-Stocktide-Tenant": "acme"}).status == 200
    for tenant in ("other", "nobody"):
        refused = client.get("/v1/stock", headers | {"X-Stocktide-Tenant": tenant})
        assert (refused.status, refused.json()["detail"]) == (403, "The credential does not speak for this tenant.")
    assert [row["gateway"] for row in client.get("/v1/gateways", headers).json()["items"]] == ["gw-acme"]


def test_an_administrator_makes_and_revokes_keys(connection: Connection, client: Client) -> None:
    """Over HTTP, within its own tenant and its own permissions, and it is in the audit log under its name."""
    admin = key(connection, "acme")
    made = client.ask("POST", "/v1/keys", admin, {"name": "new", "role": "technician", "days": 1})
    assert made.status == 201
    document = made.json()
    assert client.get("/v1/gateways", bearer(document["key"])).status == 200
    narrow = key(connection, "acme", "admin", scopes=["keys:write", "stock:read"])
    assert client.ask("POST", "/v1/keys", narrow, {"name": "wider", "role": "admin"}).status == 403
    assert (
        client.ask("POST", "/v1/keys", narrow, {"name": "n", "role": "admin", "scopes": ["stock:read"]}).status == 201
    )
    assert client.ask("DELETE", f"/v1/keys/{document['prefix']}", key(connection, "other")).status == 404
    assert client.get("/v1/gateways", bearer(document["key"])).status == 200
    assert client.ask("DELETE", f"/v1/keys/{document['prefix']}", admin).status == 204
    assert client.get("/v1/gateways", bearer(document["key"])).status == 401
    lines = client.get("/v1/audit", admin).json()
    prefix = admin["Authorization"].split("_")[1]
    ours = [(line["action"], line["object"]) for line in lines if line["actor"] == f"key:{prefix}"]
    assert ours == [("key.revoke", document["prefix"]), ("key.create", document["prefix"])]
    assert "gw-other" not in str(lines)


def test_nobody_is_told_of_what_was_not_kept(connection: Connection, client: Client) -> None:
    """The commit comes before the answer: a change that fails there is no success, and one that is told is in force."""
    admin = key(connection, "acme")
    connection.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'the disk is full'; END $$;"
        " CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON api_key DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    refused = client.ask("POST", "/v1/keys", admin, {"name": "new"})
    assert (refused.status, "disk" in refused.text) == (500, False)
    assert len(client.get("/v1/keys", admin).json()) == 1


def test_a_good_token_opens_what_its_role_may(client: Client, provider: Provider) -> None:
    """Tenant and role come from its claims; with several tenants the header chooses one of them."""
    for token in (provider.token(), provider.token("ec-1", "ES256"), provider.token(aud=["else", AUDIENCE])):
        listed = client.get("/v1/gateways", bearer(token)).json()["items"]
        assert [row["gateway"] for row in listed] == ["gw-acme"]
    assert client.get("/v1/keys", bearer(provider.token())).status == 403
    assert client.get("/v1/keys", bearer(provider.token(stocktide_role=["viewer", "admin"]))).status == 200
    both = bearer(provider.token(stocktide_tenant=["acme", "other"]))
    assert client.get("/v1/gateways", both).status == 403
    answer = client.get("/v1/gateways", both | {"X-Stocktide-Tenant": "other"})
    assert [row["gateway"] for row in answer.json()["items"]] == ["gw-other"]
    assert client.get("/v1/gateways", both | {"X-Stocktide-Tenant": "third"}).status == 403
    assert client.get("/v1/gateways", bearer(provider.token(stocktide_tenant="ghost"))).status == 403


def test_tokens_that_must_not_open(client: Client, provider: Provider) -> None:
    """Each of the usual tricks, and each missing claim."""
    stranger = Provider()
    bad = {
        "expired": provider.token(exp=1_000_000_000),
        "not yet": provider.token(nbf=4_000_000_000),
        "wrong audience": provider.token(aud="else"),
        "no audience": provider.token(aud=None),
        "wrong issuer": provider.token(iss="https://evil.example.test"),
        "no expiry": provider.token(exp=None),
        "alg none": provider.unsigned(),
        "HS256 with the public key": provider.confused(),
        "algorithm not pinned": provider.token(algorithm="PS256"),
        "unknown kid": provider.token("rsa-9"),
        "another's key under our kid": stranger.token(),
        "tampered": provider.tampered(),
        "no tenant": provider.token(stocktide_tenant=None),
        "no role": provider.token(stocktide_role="root"),
        "tenant is no word": provider.token(stocktide_tenant={"acme": True}),
        "no token": "a.b.c",
    }
    for what, token in bad.items():
        answer = client.get("/v1/stock", bearer(token))
        assert (answer.status, answer.content_type) == (401, "application/problem+json"), what


@pytest.mark.bound("api.oidc_keys_keep_s")
def test_an_unknown_kid_does_not_hammer_the_provider(provider: Provider) -> None:
    """Keys are kept; invented ids cause one fetch in half a minute, and an outage changes nothing known."""
    clock = [0.0]
    keys = KeySet(provider.url, keep_s=100, refetch_s=30, now_s=lambda: clock[0])
    before = provider.fetches
    for _ in range(20):
        assert keys.key("rsa-1").key_id == "rsa-1"
        with pytest.raises(Exception, match="unknown"):
            keys.key("invented")
    assert provider.fetches == before + 1
    keys.keep_s = 31.5
    clock[0] = 31.0
    with pytest.raises(Exception, match="unknown"):
        keys.key("invented")
    assert provider.fetches == before + 2
    clock[0] = 61.5
    assert keys.key("rsa-1").key_id == "rsa-1"
    assert provider.fetches == before + 2
    clock[0] = 63.0
    assert keys.key("rsa-1").key_id == "rsa-1"
    assert provider.fetches == before + 3
    keys.url, clock[0] = "http://127.0.0.1:1/", 1_000.0
    assert keys.key("rsa-1").key_id == "rsa-1"
    with pytest.raises(ProviderUnavailable):
        KeySet("http://127.0.0.1:1/").key("rsa-1")


@pytest.mark.parametrize("claim", ["sub", "stocktide_tenant"])
@pytest.mark.parametrize("text", ["acme\0", "\0", "a\u202ecme"])
def test_a_signed_token_with_characters_that_nobody_prints_is_refused(
    client: Client, provider: Provider, claim: str, text: str
) -> None:
    """The provider's users choose some of these; the database takes no NUL."""
    answer = client.get("/v1/stock", bearer(provider.token(**{claim: text})))
    assert answer.status == 401

"""The one way to a tenant's rows.

A dependency verifies the credential, counts the request, checks the permission and opens a transaction that sees this
tenant only.

Invariant: every endpoint under /v1 depends on `access`; none gets a connection in another way.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final, NoReturn

from fastapi import Depends, Header, HTTPException, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from cloud_api import credentials
from cloud_api.bounds import TenantBudget, TenantBusy
from cloud_api.credentials import Credential, Unauthenticated, WrongTenant
from cloud_api.oidc import KeySet, ProviderUnavailable, Verifier
from cloud_api.settings import ApiSettings
from cloud_store.base.connection import Connection
from cloud_store.tenancy import admission
from cloud_store.tenancy.admission import RateLimit
from cloud_store.tenancy.permissions import PERMISSIONS, Permission
from wire_protocol.names import SLUG_PATTERN

WINDOW_S: Final = 60
_BEARER: Final = HTTPBearer(
    auto_error=False, scheme_name="key or token", description="An API key (stk_…) or a token of the identity provider."
)
Given = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
Wanted = Annotated[
    str | None,
    Header(
        alias="X-Stocktide-Tenant",
        pattern=SLUG_PATTERN,
        examples=["acme"],
        description="Chooses among the tenants of a token; the tenant always comes from the credential.",
    ),
]


@dataclass(frozen=True, slots=True)
class Access:
    """A verified request: its tenant, and a connection in a transaction that sees only this tenant.

    `key` is the prefix of the API key that asks; None for a token.
    """

    connection: Connection
    tenant_id: int
    tenant: str
    permissions: frozenset[Permission]
    key: str | None = None


def verifier(settings: ApiSettings) -> Verifier | None:
    """What verifies bearer tokens; None when no identity provider is set."""
    if settings.oidc_issuer is None or settings.oidc_audience is None or settings.oidc_jwks_url is None:
        return None
    keys = KeySet(settings.oidc_jwks_url, keep_s=settings.oidc_keys_keep_s, refetch_s=settings.oidc_keys_refetch_s)
    return Verifier(
        settings.oidc_issuer,
        settings.oidc_audience,
        keys,
        tuple(settings.oidc_algorithms),
        settings.oidc_tenant_claim,
        settings.oidc_role_claim,
    )


def access(permission: Permission, *, writing: bool = False) -> Any:
    """The dependency of an endpoint that needs a permission.

    Its transaction is committed before the response goes out: no caller is shown what was not kept.
    """

    def opened(request: Request, response: Response, given: Given, wanted: Wanted = None) -> Iterator[Access]:
        with request.app.state.database.connection() as connection:
            credential = _verified(request, connection, given, wanted)
            settings: ApiSettings = request.app.state.settings
            allowance = admission.count_request(
                connection, credential.tenant_id, usual_per_minute=settings.requests_per_minute_max
            )
            headers = rate_headers(allowance)
            response.headers.update(headers)
            if allowance.exceeded:
                _refuse(HTTPStatus.TOO_MANY_REQUESTS, "The tenant has made too many requests in this minute.", headers)
            if permission not in credential.permissions:
                needed = f"This needs {permission}, which the role {PERMISSIONS[permission]} has."
                _refuse(HTTPStatus.FORBIDDEN, needed, headers)
            with (
                _within_budget(request.app.state.budget, credential.tenant_id, headers),
                admission.as_tenant(connection, credential.tenant_id, actor=credential.actor, writing=writing),
            ):
                yield Access(
                    connection, credential.tenant_id, credential.tenant, credential.permissions, credential.key
                )

    return Depends(opened, scope="function")


@contextmanager
def _within_budget(budget: TenantBudget, tenant_id: int, headers: Mapping[str, str]) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(budget.spending(tenant_id))
        except TenantBusy as error:
            wait = {"Retry-After": str(error.retry_after_s)}
            _refuse(HTTPStatus.TOO_MANY_REQUESTS, str(error), {**headers, **wait})
        yield


def rate_headers(allowance: RateLimit) -> dict[str, str]:
    """The headers of draft-ietf-httpapi-ratelimit-headers, in the current form and in the one most clients know."""
    headers = {
        "RateLimit-Policy": f'"tenant";q={allowance.requests_max};w={WINDOW_S}',
        "RateLimit": f'"tenant";r={allowance.remaining};t={allowance.reset_s}',
        "RateLimit-Limit": str(allowance.requests_max),
        "RateLimit-Remaining": str(allowance.remaining),
        "RateLimit-Reset": str(allowance.reset_s),
    }
    return headers | {"Retry-After": str(allowance.reset_s)} if allowance.exceeded else headers


def _verified(request: Request, connection: Connection, given: Given, wanted: str | None) -> Credential:
    presented = None if given is None else given.credentials
    try:
        return credentials.verified(connection, request.app.state.verifier, presented, wanted)
    except Unauthenticated as error:
        _refuse(HTTPStatus.UNAUTHORIZED, str(error), {"WWW-Authenticate": 'Bearer realm="stocktide"'})
    except WrongTenant:
        _refuse(HTTPStatus.FORBIDDEN, "The credential does not speak for this tenant.", {})
    except ProviderUnavailable:
        _refuse(HTTPStatus.SERVICE_UNAVAILABLE, "The identity provider does not answer.", {"Retry-After": "30"})


def _refuse(status: HTTPStatus, detail: str, headers: Mapping[str, str]) -> NoReturn:
    raise HTTPException(status, detail, headers=dict(headers))

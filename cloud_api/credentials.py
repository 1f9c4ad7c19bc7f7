"""Who asks: an API key or a bearer token becomes a tenant, an actor and permissions.

Invariant: the tenant comes from the credential. The header X-Stocktide-Tenant only chooses among those that a token
names, and must agree with a key's.
"""

from dataclasses import dataclass
from typing import Final

from cloud_api.oidc import InvalidToken, Verifier
from cloud_store.base.connection import Connection
from cloud_store.tenancy import admission, api_keys, permissions
from cloud_store.tenancy.permissions import Permission

SUBJECT_CHARS_MAX: Final = 100


class Unauthenticated(Exception):
    """This credential is not valid; the message says why."""


class WrongTenant(Exception):
    """The credential is genuine and does not speak for this tenant."""


@dataclass(frozen=True, slots=True)
class Credential:
    """The verified caller."""

    tenant_id: int
    tenant: str
    actor: str
    permissions: frozenset[Permission]
    key: str | None = None


def verified(
    connection: Connection, verifier: Verifier | None, presented: str | None, wanted: str | None
) -> Credential:
    """The caller that presents a key or a token.

    Args:
        connection: the API's, in no transaction.
        verifier: of tokens; None when no identity provider is set.
        presented: what follows `Bearer`.
        wanted: the tenant that the request names; None leaves it to the credential.

    Raises:
        Unauthenticated: the credential is not valid.
        WrongTenant: it does not speak for the wanted tenant.
        ProviderUnavailable: the key that could tell cannot be had.
    """
    if presented is None:
        raise Unauthenticated("A key or token is needed: Authorization: Bearer stk_…")
    if presented.startswith(api_keys.MARK):
        return _of_key(connection, presented, wanted)
    if verifier is None:
        raise Unauthenticated("There is no such key, and no identity provider is set.")
    return _of_token(connection, verifier, presented, wanted)


def _of_key(connection: Connection, key: str, wanted: str | None) -> Credential:
    """The holder of an API key."""
    holder = api_keys.holder(connection, key)
    if holder is None:
        raise Unauthenticated("There is no such key.")
    if holder.revoked:
        raise Unauthenticated("The key was revoked.")
    if holder.expired:
        raise Unauthenticated("The key has expired.")
    if wanted not in {None, holder.tenant}:
        raise WrongTenant
    prefix = key.split("_")[1]
    return Credential(
        holder.tenant_id, holder.tenant, f"key:{prefix}", permissions.of(holder.role, holder.scopes), prefix
    )


def _of_token(connection: Connection, verifier: Verifier, token: str, wanted: str | None) -> Credential:
    """The subject of a bearer token; of several tenants one must be wanted."""
    try:
        subject = verifier.subject(token)
    except InvalidToken as error:
        raise Unauthenticated(f"{str(error)[:1].upper()}{str(error)[1:]}.") from error
    tenant = wanted if wanted is not None else subject.tenants[0] if len(subject.tenants) == 1 else None
    if tenant is None or tenant not in subject.tenants:
        raise WrongTenant
    tenant_id = admission.tenant_id(connection, tenant)
    if tenant_id is None:
        raise WrongTenant
    actor = f"oidc:{subject.name[:SUBJECT_CHARS_MAX]}"
    return Credential(tenant_id, tenant, actor, permissions.of(subject.role))

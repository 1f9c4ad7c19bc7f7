"""Claims and certificates: who may enrol, what was signed, what is revoked.

Invariant: a certificate is recorded before it is handed out, and under the gateway's lock: one that a revocation did
not see does not exist.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg.rows import dict_row

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import AlreadyExists, StoreError, UnknownName, unknown_gateway
from cloud_store.provisioning import twins
from cloud_store.tenancy import registry
from wire_protocol import names
from wire_protocol.twin import DesiredTwin

CLAIM_LIFE_S: Final = 24 * 3600
_SQL: Final = sql.load("enrolment")


class GatewayRevoked(StoreError):
    """The gateway is disabled: nothing is issued to it."""

    usage = True


class KeyRevoked(StoreError):
    """This key was revoked; the gateway makes a new one when it is enrolled again."""


class ClaimSpent(StoreError):
    """The claim was used, revoked or ran out while its certificate was being signed."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim as an answer to it needs it; `certificate_pem` is what its use has brought."""

    claim_id: int
    secret_hash: bytes
    gateway: str
    active: bool
    expired: bool
    revoked: bool
    public_key: bytes | None
    certificate_pem: str | None


@dataclass(frozen=True, slots=True)
class Issue:
    """A certificate that is to be recorded. `issuer` is the authority's key id in hexadecimal."""

    gateway: str
    issuer: str
    serial: int
    public_key: bytes
    pem: str
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Renewals:
    """What a gateway that wants its next certificate has: whether it may, what its key got before, how often a day."""

    active: bool
    certificate_pem: str | None
    issued_in_a_day: int
    key_revoked: bool = False


def add_claim(
    connection: Connection,
    tenant: str,
    site: str,
    gateway: str,
    *,
    name: str,
    secret_hash: bytes,
    life_s: float = CLAIM_LIFE_S,
) -> tuple[datetime, bool]:
    """Make a claim for a gateway, which is registered when it is new. Returns when it ends and whether it was new.

    Raises:
        UnknownName: no such tenant or site.
        AlreadyExists: the gateway belongs elsewhere.
        GatewayRevoked: it is disabled.
    """
    with connection.transaction():
        found = _one(connection, "gateway_at", gateway=names.gateway(gateway))
        is_new = found is None
        if found is None:
            registry.add_gateway(connection, tenant, site, gateway)
            found = _one(connection, "gateway_at", gateway=gateway)
        if found is None:  # we hold a transaction that has just inserted it
            raise StoreError(f"Gateway {gateway} vanished.")
        gateway_id, tenant_id, site_id, its_tenant, its_site, state = found
        if (its_tenant, its_site) != (tenant, site):
            # The caller may belong to another tenant, so its tenant is not named.
            raise AlreadyExists(f"Gateway {gateway} exists elsewhere.", hint="Gateway names are unique across tenants.")
        if state != "active":
            hint = f"If it is to be trusted again: stocktide cloud gateway enable {gateway}"
            raise GatewayRevoked(f"Gateway {gateway} is disabled.", hint=hint)
        row = _one(
            connection,
            "add_claim",
            tenant_id=tenant_id,
            site_id=site_id,
            gateway_id=gateway_id,
            name=name,
            secret_hash=secret_hash,
            life_s=life_s,
        )
        if row is None:
            raise StoreError("The claim was not stored.")
        ends: datetime = row[0]
        return ends, is_new


def claims(connection: Connection, *, tenant: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """The newest claims with their state: open, used, expired or revoked."""
    return _all(connection, "claims", tenant=tenant, limit=limit)


def revoke_claim(connection: Connection, name: str) -> None:
    """Make a claim useless; a certificate that it has brought already stays."""
    if not _one(connection, "revoke_claim", name=name):
        raise UnknownName(f"There is no claim {name}.", hint="stocktide cloud claim list")


def revoke_gateway(connection: Connection, gateway: str) -> int:
    """Disable a gateway and revoke its certificates and open claims. Returns how many certificates that were.

    Raises:
        UnknownName: there is no such gateway.
    """
    with connection.transaction():
        row = _one(connection, "revoke_gateway", gateway=gateway)
        if row is None:
            raise unknown_gateway(gateway)
        connection.execute(_SQL["revoke_claims"], {"gateway_id": row[0]})
        return connection.execute(_SQL["revoke_certificates"], {"gateway_id": row[0]}).rowcount


def revoked(connection: Connection) -> list[tuple[str, int, datetime]]:
    """Issuer, serial number and time of every revoked certificate that has not run out."""
    rows = connection.execute(_SQL["revoked"]).fetchall()
    return [(issuer, int(serial), at) for issuer, serial, at in rows]


def certificates(connection: Connection, *, gateway: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """The newest certificates with their state: valid, expired or revoked; serial numbers in hexadecimal."""
    rows = _all(connection, "certificates", gateway=gateway, limit=limit)
    return [row | {"serial": f"{int(row['serial']):x}"} for row in rows]


def gateways_by_issuer(connection: Connection) -> dict[str, int]:
    """How many gateways still hang on each authority, by its key id."""
    return dict(connection.execute(_SQL["gateways_by_issuer"]).fetchall())


def claim(connection: Connection, name: str) -> Claim | None:
    """A claim by its public name."""
    row = connection.execute(_SQL["claim_named"], {"name": name}).fetchone()
    return None if row is None else Claim(*row)


def twin(connection: Connection, gateway: str) -> DesiredTwin | None:
    """The desired state of a gateway; None before an operator sets it."""
    row = connection.execute(_SQL["twin_of"], {"gateway": gateway}).fetchone()
    return None if row is None else twins.document(*row)


def use_claim(connection: Connection, claim: Claim, issue: Issue) -> None:
    """Use a claim up for a certificate.

    Raises:
        GatewayRevoked: the gateway was disabled meanwhile.
        KeyRevoked: a certificate of this key was revoked once.
        ClaimSpent: another gateway has used it, or it has expired.
    """
    with connection.transaction():
        _record(connection, issue, claim.claim_id)


def renewals(connection: Connection, gateway: str, public_key: bytes) -> Renewals:
    """What there is for a gateway that asks for a certificate for a key."""
    row = connection.execute(_SQL["certificate_for_key"], {"gateway": gateway, "public_key": public_key}).fetchone()
    return Renewals(active=False, certificate_pem=None, issued_in_a_day=0) if row is None else Renewals(*row)


def renew(connection: Connection, issue: Issue) -> None:
    """Record a gateway's next certificate.

    Raises:
        GatewayRevoked: the gateway was disabled meanwhile.
        KeyRevoked: a certificate of this key was revoked once.
    """
    with connection.transaction():
        _record(connection, issue, None)


def _record(connection: Connection, issue: Issue, claim_id: int | None) -> None:
    row = _one(connection, "lock_gateway", gateway=issue.gateway)
    if row is None:
        raise GatewayRevoked
    if _one(connection, "key_revoked", public_key=issue.public_key) is not None:
        raise KeyRevoked
    if claim_id is not None and not _one(connection, "use_claim", claim_id=claim_id, public_key=issue.public_key):
        raise ClaimSpent
    values = {
        "gateway_id": row[0],
        "tenant_id": row[1],
        "claim_id": claim_id,
        "issuer": issue.issuer,
        "serial": issue.serial,
        "public_key": issue.public_key,
        "pem": issue.pem,
        "not_after": issue.not_after,
    }
    connection.execute(_SQL["add_certificate"], values)


def _one(connection: Connection, statement: str, **parameters: Any) -> tuple[Any, ...] | None:
    return connection.execute(_SQL[statement], parameters).fetchone()


def _all(connection: Connection, statement: str, **parameters: Any) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL[statement], parameters).fetchall()

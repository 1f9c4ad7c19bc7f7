"""API keys: made once, shown once, kept as a digest; scoped, expiring, revocable.

A key is `stk_PREFIX_SECRET`. The prefix names it in lists and logs; the secret has 256 random bits, so its digest needs
neither salt nor a slow hash.

Invariant: the secret leaves `create` and is stored nowhere.
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from psycopg.rows import dict_row

from cloud_store.base import audit_log, sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import InvalidName, QuotaExceeded, UnknownName
from cloud_store.tenancy.permissions import PERMISSIONS, Permission, Role

MARK: Final = "stk_"
NAME_CHARS_MAX: Final = 80
LIFETIME_DAYS_MAX: Final = 3_660
KEYS_MAX: Final = 1_000
PAGE_ROWS_MAX: Final = 1_000
_KEY: Final = re.compile(r"stk_([a-z2-7]{10})_([A-Za-z0-9_-]{43})")
_SQL: Final = sql.load("api_keys")


class NewKey(NamedTuple):
    """A key as it is shown this once."""

    prefix: str
    key: str
    expires_at: datetime


class KeyHolder(NamedTuple):
    """What the store knows of a key that was presented and is genuine."""

    tenant_id: int
    tenant: str
    name: str
    role: Role
    scopes: list[Permission] | None
    expired: bool
    revoked: bool


def create(
    connection: Connection,
    tenant_id: int,
    *,
    name: str,
    role: Role,
    lifetime: timedelta,
    scopes: Collection[str] | None = None,
    maker: str | None = None,
) -> NewKey:
    """Make a key of a tenant; `maker` is the prefix of the key that makes it, which it cannot outlive.

    Raises:
        InvalidName: an unknown scope, an empty name or a lifetime out of bounds.
        QuotaExceeded: the tenant has `KEYS_MAX` keys that are neither expired nor revoked.
    """
    if unknown := set(scopes or ()) - PERMISSIONS.keys():
        raise InvalidName(f"There is no scope {min(unknown)}.", hint=f"Scopes: {', '.join(PERMISSIONS)}.")
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        raise InvalidName(f"A key's name has 1 to {NAME_CHARS_MAX} printable characters.")
    if not timedelta(0) < lifetime <= timedelta(days=LIFETIME_DAYS_MAX):
        raise InvalidName(f"A key lives for more than 0 and at most {LIFETIME_DAYS_MAX} days.")
    prefix = base64.b32encode(secrets.token_bytes(10)).decode().lower()[:10]
    key = f"{MARK}{prefix}_{secrets.token_urlsafe(32)}"
    if connection.execute(_SQL["in_force"], {"tenant_id": tenant_id}).fetchall()[0][0] >= KEYS_MAX:
        raise QuotaExceeded(f"A tenant has at most {KEYS_MAX} keys in force.", hint="Revoke those that nobody uses.")
    expires_at = datetime.now(UTC) + lifetime
    if maker is not None:
        made = connection.execute(_SQL["expiry"], {"prefix": maker}).fetchone()
        expires_at = expires_at if made is None else min(expires_at, made[0])
    fields = {
        "prefix": prefix,
        "tenant_id": tenant_id,
        "digest": _digest(key),
        "name": name,
        "role": role,
        "scopes": None if scopes is None else sorted(set(scopes)),
        "expires_at": expires_at,
        "made_by": maker,
    }
    with connection.transaction():
        connection.execute(_SQL["create"], fields)
        audit_log.record(
            connection,
            "key.create",
            prefix,
            tenant_id=tenant_id,
            name=name,
            role=role,
            scopes=fields["scopes"],
            expires_at=expires_at.isoformat(),
        )
    return NewKey(prefix, key, expires_at)


def listed(
    connection: Connection, tenant: str | None = None, *, limit: int | None = None, after: str | None = None
) -> list[dict[str, Any]]:
    """The keys that the session may see, or a tenant's, newest first; never a secret.

    `limit` and `after`, the prefix of the last key of the page before, make pages.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL["listed"], {"tenant": tenant, "limit": limit, "after": after}).fetchall()


def revoke(connection: Connection, prefix: str) -> None:
    """Refuse a key, and every key that it has made, from now on; revoking twice changes nothing.

    Raises:
        UnknownName: the session sees no such key.
    """
    with connection.transaction():
        row = connection.execute(_SQL["owner"], {"prefix": prefix}).fetchone()
        if row is None:
            raise UnknownName(f"There is no key {prefix}.", hint="stocktide cloud key list")
        revoked = sorted(each for (each,) in connection.execute(_SQL["revoke"], {"prefix": prefix}))
        if revoked:
            audit_log.record(connection, "key.revoke", prefix, tenant_id=row[0], with_children=len(revoked) - 1)


def holder(connection: Connection, key: str) -> KeyHolder | None:
    """Whose key this is; None when it is not one of ours. Notes that it was used, to the minute."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    with connection.transaction():
        connection.execute(_SQL["writing"])
        row = connection.execute(_SQL["holder"], {"prefix": match[1], "digest": _digest(key)}).fetchone()
    return None if row is None else KeyHolder(*row)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()

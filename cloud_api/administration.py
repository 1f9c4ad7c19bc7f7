"""What a tenant's own administrators do over HTTP: keys, the audit log, the quota.

Invariant: a key that is made here can do no more than the credential that makes it, and ends with it.
"""

from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import FastAPI, HTTPException, Path, Query
from pydantic import BaseModel, Field

from cloud_api import problems
from cloud_api.access import Access, access
from cloud_store.base import audit_log
from cloud_store.tenancy import api_keys, permissions, quotas
from cloud_store.tenancy.permissions import Permission, Role

PREFIX_PATTERN: Final = r"^[a-z2-7]{10}$"


class KeyWanted(BaseModel, extra="forbid"):
    """A key to be made."""

    name: str = Field(min_length=1, max_length=api_keys.NAME_CHARS_MAX, examples=["warehouse dashboard"])
    role: Role = Field("viewer", description="Not above the asker's own.")
    scopes: list[Permission] | None = Field(
        None, max_length=len(permissions.PERMISSIONS), description="Only these permissions of the role; absent: all."
    )
    days: float = Field(
        365,
        gt=0,
        le=api_keys.LIFETIME_DAYS_MAX,
        description="Days until it expires; never after the key that makes it.",
    )


class KeyMade(BaseModel):
    """A new key; the only time it is shown."""

    prefix: str
    key: str
    expires_at: datetime


class KeyRow(BaseModel):
    """A key, without its secret."""

    prefix: str
    name: str
    role: Role
    scopes: list[str] | None
    state: str = Field(examples=["active"])
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None


class AuditRow(BaseModel):
    """An administrative action."""

    audit_id: int
    at: datetime
    actor: str = Field(examples=["key:7c3zqk2vdo"])
    action: str = Field(examples=["key.create"])
    object: str
    detail: dict[str, Any]


class Quota(BaseModel):
    """What the tenant uses and may use; absent is without a limit."""

    gateways: int
    gateways_max: int | None
    devices: int
    devices_max: int | None
    entries_per_s_max: int | None
    requests_per_minute_max: int | None
    names: int = Field(description="Items, places, lots, devices, epochs and metrics that ledgers have named.")
    names_max: int | None


def install(app: FastAPI) -> None:
    """Add the endpoints."""
    about: dict[str, Any] = {"tags": ["administration"], "responses": problems.RESPONSES}
    app.get("/v1/keys", summary="API keys of the tenant, newest first", **about)(_keys)
    app.post("/v1/keys", summary="Make an API key", status_code=HTTPStatus.CREATED, **about)(_make_key)
    app.delete("/v1/keys/{prefix}", summary="Revoke an API key", status_code=HTTPStatus.NO_CONTENT, **about)(_revoke)
    app.get("/v1/audit", summary="Administrative actions, newest first", **about)(_audit)
    app.get("/v1/quota", summary="What the tenant uses and may use", **about)(_quota)


def _keys(
    reader: Annotated[Access, access("keys:read")],
    limit: Annotated[int, Query(ge=1, le=api_keys.PAGE_ROWS_MAX)] = 100,
    after: Annotated[
        str | None, Query(pattern=PREFIX_PATTERN, description="The `prefix` of the last row before.")
    ] = None,
) -> list[KeyRow]:
    return [KeyRow.model_validate(row) for row in api_keys.listed(reader.connection, limit=limit, after=after)]


def _make_key(wanted: KeyWanted, writer: Annotated[Access, access("keys:write", writing=True)]) -> KeyMade:
    beyond = permissions.of(wanted.role, wanted.scopes) - writer.permissions
    if beyond:
        raise HTTPException(HTTPStatus.FORBIDDEN, f"You may not give what you do not have: {min(beyond)}.")
    made = api_keys.create(
        writer.connection,
        writer.tenant_id,
        name=wanted.name,
        role=wanted.role,
        scopes=wanted.scopes,
        lifetime=timedelta(days=wanted.days),
        maker=writer.key,
    )
    return KeyMade.model_validate(made._asdict())


def _revoke(
    prefix: Annotated[str, Path(pattern=PREFIX_PATTERN)],
    writer: Annotated[Access, access("keys:write", writing=True)],
) -> None:
    api_keys.revoke(writer.connection, prefix)


def _audit(
    reader: Annotated[Access, access("audit:read")],
    limit: Annotated[int, Query(ge=1, le=audit_log.ROWS_MAX)] = 100,
    before: Annotated[int | None, Query(ge=1, le=(1 << 63) - 1, description="Lines before this audit_id.")] = None,
) -> list[AuditRow]:
    return [AuditRow.model_validate(row) for row in audit_log.newest(reader.connection, limit=limit, before=before)]


def _quota(reader: Annotated[Access, access("quota:read")]) -> Quota:
    (row,) = quotas.listed(reader.connection, reader.tenant)
    return Quota.model_validate(row)

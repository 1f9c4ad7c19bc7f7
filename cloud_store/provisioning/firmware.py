"""Firmware in the cloud: images and signed releases, as operators add them and gateways fetch them.

Invariants: the number of a release grows within its model; a version of a model is one image forever; a gateway is
given images of its own tenant only.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from psycopg.rows import dict_row

from cloud_store.base import audit_log, sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import InvalidFirmware, UnknownName
from cloud_store.tenancy import registry
from wire_protocol.firmware import IMAGE_BYTES_MAX, FirmwareChunk, FirmwareChunkLine, FirmwareRequest, Release, is_newer

ROWS_MAX: Final = 10_000
_SQL: Final = sql.load("firmware")


def piece(connection: Connection, gateway: str, ask: FirmwareRequest) -> FirmwareChunk | None:
    """What a gateway asks for; a chunk of size 0 when its tenant has no such image, None for an unknown gateway."""
    parameters = {"gateway": gateway, "sha256": ask.sha256, "offset": ask.offset, "bytes": ask.bytes}
    row = connection.execute(_SQL["piece"], parameters).fetchone()
    if row is None:
        return None
    size, piece = (0, b"") if row[0] is None else row
    digest = hashlib.sha256(piece).hexdigest()
    offset = 0 if row[0] is None else ask.offset
    return FirmwareChunk(FirmwareChunkLine(sha256=ask.sha256, offset=offset, size=size, digest=digest), piece)


def add(connection: Connection, tenant: str, releases: Sequence[Release], body: bytes | None, *, who: str) -> None:
    """Add releases whose signatures were checked, all or none; `body` is the image of the first.

    Raises:
        UnknownName: there is no such tenant.
        InvalidFirmware: a number is not greater than the last, the image is not the one that was signed, or the version
            is another image already.
    """
    with connection.transaction():
        tenant_id = registry.tenant_id(connection, tenant)
        connection.execute(_SQL["lock_tenant"], {"tenant_id": tenant_id})
        if body is not None:
            _add_image(connection, tenant_id, releases[0], body)
        for release in releases:
            _add_release(connection, tenant_id, release, who)


def listing(
    connection: Connection,
    *,
    tenant: str | None = None,
    model: str | None = None,
    version: str | None = None,
    replaces: str | None = None,
    limit: int = ROWS_MAX,
) -> list[dict[str, Any]]:
    """Releases, the latest of each model first."""
    parameters = {
        "tenant": tenant,
        "model": model,
        "version": version,
        "replaces": replaces,
        "limit": min(limit, ROWS_MAX),
    }
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL["releases"], parameters).fetchall()


def newest(connection: Connection, tenant: str, model: str, version: str) -> Release:
    """The latest release of a version.

    Raises:
        UnknownName: there is none.
    """
    rows = listing(connection, tenant=tenant, model=model, version=version, limit=1)
    if not rows:
        raise UnknownName(
            f"Tenant {tenant} has no firmware {version} for {model}.",
            hint=f"stocktide cloud firmware add; what there is: stocktide cloud firmware list --tenant {tenant}",
        )
    return _release(rows[0])


def rollback_release(connection: Connection, tenant: str, release: Release) -> Release | None:
    """The release that takes another one back; None when none was signed since."""
    rows = listing(connection, tenant=tenant, model=release.model, replaces=release.version, limit=1)
    found = _release(rows[0]) if rows else None
    return found if found is not None and found.release > release.release else None


def before(connection: Connection, tenant: str, model: str, version: str) -> Release | None:
    """The latest release of an older version: where a rollback from `version` leads."""
    older = [row for row in listing(connection, tenant=tenant, model=model) if is_newer(version, row["version"])]
    plain = [row for row in older if row["replaces"] is None]
    return _release(max(plain or older, key=lambda row: row["release"])) if older else None


def greatest(connection: Connection, tenant: str, model: str) -> int:
    """The last release number of a model, 0 before the first.

    Raises:
        UnknownName: there is no such tenant.
    """
    parameters = {"tenant_id": registry.tenant_id(connection, tenant), "model": model}
    [(number,)] = connection.execute(_SQL["greatest"], parameters).fetchall()
    return int(number)


def tenant_of(connection: Connection, gateways: Sequence[int]) -> str:
    """Whose gateways these are.

    Raises:
        InvalidFirmware: they are not one tenant's.
    """
    names = [row[0] for row in connection.execute(_SQL["tenants_of"], {"gateways": list(gateways)})]
    if len(names) != 1:
        raise InvalidFirmware("Firmware belongs to a tenant, and these gateways are several tenants'.")
    return str(names[0])


def _add_image(connection: Connection, tenant_id: int, release: Release, body: bytes) -> None:
    if len(body) > IMAGE_BYTES_MAX:
        raise InvalidFirmware(f"The image has {len(body)} bytes; at most {IMAGE_BYTES_MAX} can be rolled out.")
    if (len(body), hashlib.sha256(body).hexdigest()) != (release.size, release.sha256):
        raise InvalidFirmware("The image is not the one that was signed.")
    fields = {"tenant_id": tenant_id, "sha256": release.sha256, "size": release.size, "body": body}
    connection.execute(_SQL["add_image"], fields)


def _add_release(connection: Connection, tenant_id: int, release: Release, who: str) -> None:
    fields = release.model_dump() | {"tenant_id": tenant_id, "who": who}
    [(last,)] = connection.execute(_SQL["greatest"], fields).fetchall()
    if release.release <= last:
        raise InvalidFirmware(
            f"Release {release.release} of {release.model} is not greater than {last}.",
            hint="Sign it again with a greater --release; without one the time is taken.",
        )
    row = connection.execute(_SQL["image_of_version"], fields).fetchone()
    if row is not None and row[0] != release.sha256:
        raise InvalidFirmware(
            f"Version {release.version} of {release.model} is another image already.", hint="Give it another version."
        )
    connection.execute(_SQL["add_release"], fields)
    audit_log.record(
        connection,
        "firmware.add",
        f"{release.model} {release.version}",
        tenant_id=tenant_id,
        release=release.release,
        sha256=release.sha256,
        replaces=release.replaces,
    )


def _release(row: dict[str, Any]) -> Release:
    return Release(**{name: row[name] for name in Release.model_fields})

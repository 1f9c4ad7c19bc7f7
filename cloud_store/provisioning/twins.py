"""Device twins in the cloud: documents that operators change, pushes that are due, and what gateways report.

Invariant: a document is stored only when a gateway could take it, and its version grows with its content and never
falls, whatever a failover has lost.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from cloud_store.base import audit_log, sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import StoreError, UnknownName, unknown_gateway
from cloud_store.base.rows import ReadRows, read_each
from cloud_store.merge.dead_letters import storable
from wire_protocol import twin
from wire_protocol.names import misspelt
from wire_protocol.twin import DesiredState, DesiredTwin, InvalidTwin, ReportedTwin

BATCH_GATEWAYS: Final = 200
# Changes that a failover to an older database can have lost: a gateway further ahead of us is not believed.
VERSION_LEAD_MAX: Final = 1_000_000
PAGE_ROWS: Final = 1_000
_SQL: Final = sql.load("twins")


class ImplausibleReport(StoreError, ValueError):
    """A gateway reports something that cannot be."""


class Push(NamedTuple):
    """A document that a gateway should get."""

    gateway: str
    twin: DesiredTwin


@dataclass(frozen=True, slots=True)
class Selection:
    """Which gateways: by name, or all of a tenant or of a site of it. None does not narrow."""

    names: tuple[str, ...] | None = None
    tenant: str | None = None
    site: str | None = None


class Changed(NamedTuple):
    """How far a change of many gateways is: looked at, changed, and all."""

    seen: int
    changed: int
    total: int


def due(connection: Connection, shards: Iterable[int], *, limit: int, again_s: float) -> ReadRows[Push]:
    """Twins to push now, at most `limit`; one that was not taken is due again after `again_s` s."""
    parameters = {"shards": sorted(shards), "limit": limit, "again_s": again_s}
    rows = connection.execute(_SQL["due"], parameters).fetchall()
    return read_each(rows, lambda gateway, version, state: Push(gateway, document(version, state)))


def pushed(connection: Connection, pushes: Sequence[Push]) -> None:
    """Note that these were handed to the broker."""
    columns = {"names": [push.gateway for push in pushes], "versions": [push.twin.version for push in pushes]}
    connection.execute(_SQL["pushed"], columns)


def set_aside(connection: Connection, gateways: Sequence[str]) -> None:
    """Documents that no gateway could take are due again after a while, or when they change, like pushed ones."""
    connection.execute(_SQL["set_aside"], {"names": list(gateways)})


def report(connection: Connection, gateway: str, reported: ReportedTwin) -> DesiredTwin | None:
    """Store what a gateway says it has in force. Returns the document when it has not got it.

    Raises:
        ImplausibleReport: it reports a version that its document cannot have had.
    """
    said = Jsonb(storable(json.loads(reported.encode())))
    parameters = {
        "gateway": gateway,
        "version": reported.version,
        "reported": said,
        "lead_max": VERSION_LEAD_MAX,
    }
    row = connection.execute(_SQL["report"], parameters).fetchone()
    if row is None:
        known = connection.execute(_SQL["known_version"], {"gateway": gateway}).fetchone()
        if known is not None and reported.version > known[0] + VERSION_LEAD_MAX:
            raise ImplausibleReport(f"It reports version {reported.version} of its twin, which is at {known[0]}.")
        return None  # unknown here
    if row[0] == row[2] or reported.refused == row[0]:
        return None  # it has it, or it has said that it cannot take it
    return document(row[0], row[1])


def change(connection: Connection, wanted: Selection, patch: Mapping[str, Any], *, who: str) -> Iterator[Changed]:
    """Merge a patch into the documents of gateways, some hundred in each transaction; tells how far it is.

    A gateway whose document is the same afterwards keeps its version.

    Raises:
        UnknownName: no gateway is meant, or one that was named does not exist.
        InvalidTwin: what would come of it is not valid; gateways before this one are changed.
    """
    gateways = select(connection, wanted)
    changed = 0
    for start in range(0, len(gateways), BATCH_GATEWAYS):
        batch = gateways[start : start + BATCH_GATEWAYS]
        with connection.transaction():
            changed_here = _change(connection, batch, patch, who)
            if changed_here:
                audit_log.record(connection, "twin.set", f"{changed_here} gateways", patch=dict(patch))
        changed += changed_here
        yield Changed(start + len(batch), changed, len(gateways))


def select(connection: Connection, wanted: Selection) -> list[int]:
    """The numbers of the gateways that are meant.

    Raises:
        UnknownName: none is meant, or one that was named does not exist.
    """
    names = None if wanted.names is None else list(wanted.names)
    parameters = {"names": names, "tenant": wanted.tenant, "site": wanted.site}
    gateways = [row[0] for row in connection.execute(_SQL["selected"], parameters)]
    if not gateways or (names is not None and len(gateways) < len(set(names))):
        what = "Not all of these gateways exist." if names else "There is no such gateway."
        raise UnknownName(what, hint="stocktide cloud gateway list")
    return gateways


def change_one(
    connection: Connection, gateway_id: int, patch: Mapping[str, Any], *, who: str
) -> tuple[int, Mapping[str, Any]]:
    """Merge a patch into one document, inside a transaction. Returns its version now, and its content before.

    Raises:
        InvalidTwin: what would come of it is not valid.
    """
    connection.execute(_SQL["create_missing"], {"gateways": [gateway_id]})
    row = _locked(connection, gateway_id)
    return row.version + _store(connection, row, patch, who), row.state


def restore_version(
    connection: Connection, gateway_id: int, version: int, content: Mapping[str, Any], *, who: str
) -> bool:
    """Give a document an earlier content back, as a new version; not when it has changed since `version`."""
    row = _locked(connection, gateway_id)
    if row.version != version:
        return False
    if row.state != content:
        _write(connection, row, content, {"put back": content}, who)
    return True


def wants_release(connection: Connection, gateway_id: int, model: str, release: int) -> bool:
    """Whether a document still wants a firmware release; locks it, inside a transaction."""
    wanted = _locked(connection, gateway_id).state.get("firmware", {}).get(model, {})
    return bool(wanted.get("release") == release)


def show(connection: Connection, gateway: str) -> dict[str, Any]:
    """Desired and reported state of a gateway.

    Raises:
        UnknownName: there is no such gateway.
    """
    rows = _all(connection, "show", gateway=gateway)
    if not rows:
        raise unknown_gateway(gateway)
    return rows[0]


def overview(connection: Connection, *, tenant: str | None = None, site: str | None = None) -> Iterator[dict[str, Any]]:
    """Every twin and how far it is, read in pages."""
    after = ""
    while page := _all(connection, "overview", tenant=tenant, site=site, after=after, limit=PAGE_ROWS):
        yield from page
        after = page[-1]["gateway"]


def history(connection: Connection, gateway: str, *, limit: int) -> list[dict[str, Any]]:
    """The latest changes of a gateway's document, by whom.

    Raises:
        UnknownName: there is no such gateway.
    """
    show(connection, gateway)
    return _all(connection, "history", gateway=gateway, limit=limit)


def _change(connection: Connection, gateways: list[int], patch: Mapping[str, Any], who: str) -> int:
    connection.execute(_SQL["create_missing"], {"gateways": gateways})
    rows = connection.execute(_SQL["lock"], {"gateways": gateways}).fetchall()
    return sum(_store(connection, _Row(*row), patch, who) for row in rows)


class _Row(NamedTuple):
    gateway_id: int
    version: int
    state: Mapping[str, Any]


def _locked(connection: Connection, gateway_id: int) -> _Row:
    [row] = connection.execute(_SQL["lock"], {"gateways": [gateway_id]}).fetchall()
    return _Row(*row)


def _store(connection: Connection, row: _Row, patch: Mapping[str, Any], who: str) -> int:
    """Store a document after a patch. Returns by how much its version has grown."""
    _require_spelling(patch)
    made = twin.merged(row.state, patch).model_dump(mode="json", exclude_defaults=True)
    if made == row.state and row.version:
        return 0
    _write(connection, row, made, patch, who)
    return 1


def _write(connection: Connection, row: _Row, content: Mapping[str, Any], patch: Mapping[str, Any], who: str) -> None:
    key = {"gateway_id": row.gateway_id, "version": row.version + 1}
    connection.execute(_SQL["store"], key | {"state": Jsonb(content)})
    connection.execute(_SQL["note_change"], key | {"who": who, "patch": Jsonb(patch)})


def _require_spelling(patch: Mapping[str, Any]) -> None:
    """What an operator writes now has the one spelling; documents of before are left as they are."""
    devices = patch.get("devices")
    for device in devices.values() if isinstance(devices, Mapping) else ():
        location = device.get("location") if isinstance(device, Mapping) else None
        if isinstance(location, str) and (problem := misspelt(location)) is not None:
            raise InvalidTwin(f"location: {problem}")


def document(version: int, state: Mapping[str, Any]) -> DesiredTwin:
    """A stored document as a gateway is sent it."""
    return DesiredTwin(version=version, state=DesiredState.model_validate_json(json.dumps(state)))


def _all(connection: Connection, statement: str, **parameters: Any) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL[statement], parameters).fetchall()

"""Names that stand for others: two spellings of one item, or of one shelf, become one in every report.

Invariant: nothing that was booked changes. Entries, balances and digests keep the names that gateways booked under,
late entries included; reports add the cells up (ADR 21). A name stands for one other name, which stands for none.
"""

from typing import Any, Final, Literal, TypeAlias

from psycopg.rows import dict_row

from cloud_store.base import audit_log, sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import CannotMerge, UnknownName, unknown_site
from cloud_store.tenancy import registry

Noun: TypeAlias = Literal["item", "location"]
_SQL: Final = sql.load("merged_names")


def merge(connection: Connection, noun: Noun, tenant: str, old: str, new: str, *, site: str | None = None) -> int:
    """Let one name stand for another; `site` is that of two locations. Returns how many names stand for `new` now.

    Raises:
        UnknownName: there is no such tenant, site or name.
        CannotMerge: it would be a circle, the units differ, or the new name itself stands for another.
    """
    with connection.transaction():
        tenant_id = registry.tenant_id(connection, tenant)
        rows = _locked(connection, noun, tenant_id, tenant, site, old, new)
        if old == new:
            raise CannotMerge(
                f"{new} is one {noun} already.", hint="Name the odd one first, then the one that is meant."
            )
        source, target = rows[old], rows[new]
        if target["merged_into"] is not None:
            raise CannotMerge(
                f"{new} stands for another {noun} itself.",
                hint=f"Merge into that one, or take it apart first: stocktide cloud {noun} split",
            )
        _require_same_unit(source, target)
        moved = connection.execute(_SQL[f"merge_{noun}s"], {"old": source["id"], "new": target["id"]}).rowcount
        audit_log.record(connection, f"{noun}.merge", old, tenant_id=tenant_id, into=new, site=site)
        return moved


def split(connection: Connection, noun: Noun, tenant: str, old: str, *, site: str | None = None) -> None:
    """Take a name apart from the one that it stands for.

    Raises:
        UnknownName: there is no such tenant, site or name.
        CannotMerge: it stands for none.
    """
    with connection.transaction():
        tenant_id = registry.tenant_id(connection, tenant)
        row = _locked(connection, noun, tenant_id, tenant, site, old)[old]
        if row["merged_into"] is None:
            raise CannotMerge(f"{old} stands for no other {noun}.", hint=f"See: stocktide cloud {noun} list")
        connection.execute(_SQL[f"split_{noun}s"], {"old": row["id"]})
        audit_log.record(connection, f"{noun}.split", old, tenant_id=tenant_id, site=site)


def _locked(
    connection: Connection, noun: Noun, tenant_id: int, tenant: str, site: str | None, *names: str
) -> dict[str, dict[str, Any]]:
    owner = tenant_id
    if noun == "location":
        row = connection.execute(_SQL["site"], {"tenant_id": tenant_id, "site": site}).fetchone()
        if row is None:
            raise unknown_site(tenant, site)
        owner = row[0]
    with connection.cursor(row_factory=dict_row) as cursor:
        found = {row["name"]: row for row in cursor.execute(_SQL[f"{noun}s"], {"owner": owner, "names": list(names)})}
    for name in names:
        if name not in found:
            raise UnknownName(
                f"There is no {noun} {name!a}.",
                hint=f"As they are written: stocktide cloud {noun} clashes --tenant {tenant}",
            )
    return found


def _require_same_unit(source: dict[str, Any], target: dict[str, Any]) -> None:
    """A stub has the usual unit, which nobody has given it; its quantities count whole pieces all the same."""
    if source["scale"] != target["scale"] or (source["unit"] != target["unit"] and not source["stub"]):
        shown = [f"1/10^{row['scale']} {row['unit']}" for row in (source, target)]
        raise CannotMerge(
            f"Quantities of {source['name']!a} are in {shown[0]}, those of {target['name']!a} in {shown[1]}.",
            hint="Give the odd one the other's unit and scale first: stocktide cloud item import --replace",
        )

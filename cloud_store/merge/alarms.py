"""Alarms: what an operator must look at, and what to do about it.

Invariant: bounded. A gateway has at most one open alarm of a kind; the same thing again only raises its count.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from psycopg.rows import dict_row

from cloud_store.base import audit_log, sql
from cloud_store.base.connection import Connection
from cloud_store.merge.dead_letters import printable
from cloud_store.merge.plan import Plan, QuarantineCode
from wire_protocol.reasons import RejectCode

DETAIL_CHARS_MAX: Final = 2_000


class AlarmKind(StrEnum):
    """What an alarm is about."""

    FORK = "fork"
    REPEATED_EVENTS = "repeated-events"
    STOCK_DIFFERS = "stock-differs"
    ITEM_DROPPED = "item-dropped"
    GATEWAY_PROBLEM = "gateway-problem"


ADVICE: Final[dict[AlarmKind, str]] = {
    AlarmKind.FORK: (
        "A backup was restored, a disk was cloned, or the gateway replaced. "
        "It fetches what it lacks and opens a new epoch."
    ),
    AlarmKind.REPEATED_EVENTS: (
        "Two ledgers of one gateway have the same scans; they count once. Does a second one run?"
    ),
    AlarmKind.STOCK_DIFFERS: (
        "Gateway and cloud show different stock. Verify, then rebuild what differs from its entries: "
        "stocktide cloud ledger verify, stocktide edge ledger verify"
    ),
    AlarmKind.ITEM_DROPPED: "A worker could not use something that this gateway sent. Its log has the details.",
    AlarmKind.GATEWAY_PROBLEM: (
        "The gateway says so of itself; the alarm ends when it is over. On site: stocktide edge status"
    ),
}
_SQL: Final = sql.load("alarms")


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something about a gateway."""

    gateway: str
    kind: AlarmKind
    detail: str
    unless_sent: str | None = None
    """A command that explains it: none is raised when an operator has sent it to the gateway a short while ago."""


def of_plan(planned: Plan) -> Iterable[Alarm]:
    """What a merge has come across, by gateway."""
    for arrived, code, sentence in planned.quarantined:
        if code is QuarantineCode.FORK:
            yield Alarm(arrived.gateway, AlarmKind.FORK, sentence)
    for frame in planned.merged:
        header = frame.arrived.frame.header
        if header.frame == 1 and header.after:
            # The gateway may have noticed before its first frame was refused; the alarm must be raised all the same.
            detail = f"went on in epoch {header.epoch}, after {', '.join(sorted(header.after))}"
            yield Alarm(frame.arrived.gateway, AlarmKind.FORK, detail, unless_sent="open-epoch")
        repeated = [bad.sentence for bad in frame.rejected if bad.code is RejectCode.REPEATED]
        if repeated:
            detail = f"{len(repeated)} scans, such as: {repeated[0]}"
            yield Alarm(frame.arrived.gateway, AlarmKind.REPEATED_EVENTS, detail)


def raise_all(connection: Connection, alarms: Iterable[Alarm]) -> None:
    """Raise alarms, in key order so that two workers cannot deadlock."""
    latest = {(alarm.gateway, alarm.kind): alarm for alarm in alarms}
    for (gateway, kind), alarm in sorted(latest.items(), key=lambda each: each[0]):
        detail = printable(alarm.detail[:DETAIL_CHARS_MAX])
        parameters = {"gateway": gateway, "kind": kind, "detail": detail, "unless_sent": alarm.unless_sent}
        connection.execute(_SQL["raise"], parameters)


def settle(connection: Connection, gateway: str, kind: AlarmKind) -> None:
    """End the open alarm of a kind, because its cause is over: a worker found that, no operator acted."""
    connection.execute(_SQL["clear"], {"gateway": gateway, "kind": kind})


def take_reports(connection: Connection, problems: Mapping[str, Mapping[str, str]]) -> None:
    """What gateways say is wrong with them, by gateway and part: raised while it is so, ended when nothing is.

    A gateway that says so now and then has one row a day, not one each time.
    """
    for gateway, parts in sorted(problems.items()):
        if parts:
            detail = printable("; ".join(f"{part}: {why}" for part, why in sorted(parts.items()))[:DETAIL_CHARS_MAX])
            values = {"gateway": gateway, "kind": AlarmKind.GATEWAY_PROBLEM, "detail": detail}
            connection.execute(_SQL["reopen"], values)
            connection.execute(_SQL["report"], values)
    if well := sorted(gateway for gateway, parts in problems.items() if not parts):
        connection.execute(_SQL["end"], {"gateways": well, "kind": AlarmKind.GATEWAY_PROBLEM})


def clear(connection: Connection, gateway: str, kind: AlarmKind | None = None) -> int:
    """Clear the open alarms of a gateway, of one kind or all, by an operator; returns how many."""
    with connection.transaction():
        rows = connection.execute(_SQL["clear"], {"gateway": gateway, "kind": kind}).fetchall()
        if rows:
            kinds = sorted(kind for kind, _ in rows)
            audit_log.record(connection, "alarm.clear", gateway, tenant_id=rows[0][1], kinds=kinds)
        return len(rows)


def listing(
    connection: Connection, *, limit: int, tenant: str | None = None, cleared: bool = False
) -> list[dict[str, Any]]:
    """Open alarms, newest first; with `cleared`, all."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL["alarms"], {"limit": limit, "tenant": tenant, "all": cleared}).fetchall()

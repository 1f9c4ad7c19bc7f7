"""The proof: what the devices sent, what the ledgers hold and what the cloud holds are the same, each counted once.

Invariant: the proof reads the stores themselves, not counters that were kept on the way.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cloud_store.base import connection as cloud_connection
from cloud_store.reports import snapshots
from edge_agent.ledger import audit, database, queries
from stocktide.demo.plan import DemoSite
from wire_protocol.stock import Cell, differences, imbalance

DIFFERENCES_SHOWN_MAX = 10


@dataclass(frozen=True, slots=True)
class SiteComparison:
    """One site's row of the table, and what differs."""

    site: DemoSite
    events_sent: int
    ledger_entries: int
    cloud_entries: int
    cloud_distinct: int
    readings_sent: int
    ledger_readings: int
    cloud_readings: int
    cells: int
    edge_total: int
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Proof:
    """All sites, and what only the whole can show."""

    sites: list[SiteComparison]
    problems: list[str]

    @property
    def holds(self) -> bool:
        """Whether nothing differs anywhere."""
        return not self.problems and not any(site.problems for site in self.sites)


def prove(database_url: str, ledgers: dict[DemoSite, Path], sent: dict[str, tuple[int, int]]) -> Proof:
    """Compare everything.

    Args:
        database_url: the cloud's database.
        ledgers: each site's ledger file.
        sent: distinct events and readings that the devices of each gateway sent.
    """
    with contextlib.closing(cloud_connection.connect(database_url, application="stocktide-demo-proof")) as cloud:
        sites = [_site(cloud, site, path, *sent[site.gateway]) for site, path in ledgers.items()]
        unbalanced = snapshots.imbalance(cloud)
    problems = [
        f"{tenant}: {sku}{f' lot {lot}' if lot else ''} sums to {total} over all locations"
        for (tenant, sku, lot), total in sorted(unbalanced.items())
    ]
    return Proof(sites, problems)


def _site(
    cloud: cloud_connection.Connection, site: DemoSite, path: Path, events_sent: int, readings_sent: int
) -> SiteComparison:
    with contextlib.closing(database.open_reader(path)) as reader:
        edge = queries.balances(reader)
        status = queries.status(reader, path)
        findings = audit.verify(reader).findings
    there = snapshots.balances(cloud, site.tenant, site.name)
    stored = {row.table: row for row in snapshots.entries(cloud) if row.gateway == site.gateway}
    goods = [stored[table] for table in ("movement", "count") if table in stored]
    row = SiteComparison(
        site=site,
        events_sent=events_sent,
        ledger_entries=status["entries"],
        cloud_entries=sum(found.rows for found in goods),
        cloud_distinct=sum(found.distinct for found in goods),
        readings_sent=readings_sent,
        ledger_readings=status["readings"],
        cloud_readings=snapshots.readings(cloud).get((site.tenant, site.gateway), 0),
        cells=len(edge),
        edge_total=sum(quantity for cell, quantity in edge.items() if not cell.location.startswith("@")),
    )
    row.problems.extend(_problems(row, edge, there, findings))
    return row


def _problems(row: SiteComparison, edge: dict[Cell, int], there: dict[Cell, int], findings: list[str]) -> Iterator[str]:
    for finding in findings:
        yield f"ledger: {finding}"
    if row.events_sent != row.ledger_entries:
        yield f"devices sent {row.events_sent} events, the ledger has {row.ledger_entries}"
    if not row.ledger_entries == row.cloud_entries == row.cloud_distinct:
        yield (
            f"{row.ledger_entries} entries in the ledger, {row.cloud_entries} in the cloud "
            f"({row.cloud_distinct} distinct)"
        )
    if not row.readings_sent == row.ledger_readings == row.cloud_readings:
        yield (
            f"{row.readings_sent} readings sent, {row.ledger_readings} in the ledger, {row.cloud_readings} in the cloud"
        )
    different = list(differences(edge.items(), there.items()))
    for cell, ours, theirs in different[:DIFFERENCES_SHOWN_MAX]:
        yield f"{cell.sku} at {cell.location}: {ours} at the edge, {theirs} in the cloud"
    if len(different) > DIFFERENCES_SHOWN_MAX:
        yield f"… and {len(different) - DIFFERENCES_SHOWN_MAX} more balances"
    for (sku, _), total in imbalance(edge.items()).items():
        yield f"{sku} sums to {total} over all locations of the ledger"

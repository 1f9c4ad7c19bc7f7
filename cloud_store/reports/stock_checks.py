"""What is needed to compare a gateway's stock with the cloud's: digests, a snapshot for the bisection, alarms.

Invariant: balances and position are read in one snapshot, or they would not belong together.
"""

from collections.abc import Iterable
from typing import NamedTuple

from cloud_store.base.connection import Connection
from cloud_store.merge import alarms, site_digests
from cloud_store.merge.alarms import Alarm, AlarmKind
from cloud_store.merge.site_digests import SiteDigest
from wire_protocol import proof
from wire_protocol.proof import StockDigest
from wire_protocol.stock import Cell


class Comparison(NamedTuple):
    """A gateway's proof beside the cloud's: whether they are of the same position, agree, and the cloud is intact."""

    comparable: bool
    agrees: bool
    intact: bool


class SiteSnapshot(NamedTuple):
    """A site's stock in its balances, the position it belongs to, and the digest that the merge has kept there."""

    on_hand: list[tuple[Cell, int]]
    position: int
    kept: int


def compare(connection: Connection, gateway: str, theirs: StockDigest, *, scan_s: float) -> Comparison | None:
    """Compare a gateway's proof with what the merge has kept, and that with the balances if a scan is due.

    None for a gateway that is not active, or a site where nothing was merged yet.
    """
    ours = site_digests.of_gateway(connection, gateway, scan_s=scan_s)
    if ours is None:
        return None
    intact = _scan(connection, gateway, ours) if ours.scan_due else not ours.damaged
    digest = ours.recent.get(int(theirs.position, 16))
    agrees = digest is not None and proof.as_text(digest) == theirs.digest
    if agrees and intact:
        site_digests.note_proof(connection, gateway, differs=False)
        alarms.settle(connection, gateway, AlarmKind.STOCK_DIFFERS)
    return Comparison(digest is not None, agrees, intact)


def snapshot(connection: Connection, gateway: str) -> SiteSnapshot | None:
    """The stock of a gateway's site as it is in the balances; None for a gateway that is not active."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        ours = site_digests.of_gateway(connection, gateway, scan_s=0)
        if ours is None:
            return None
        return SiteSnapshot(list(site_digests.balances(connection, ours.site_id)), ours.position, ours.digest)


def differ(
    connection: Connection, gateway: str, differences: Iterable[tuple[Cell, int, int]], *, complete: bool
) -> None:
    """Raise the alarm: each cell with what the cloud and what the gateway has."""
    lines = [
        f"{cell.sku}{f' lot {cell.lot}' if cell.lot else ''} at {cell.location}: cloud {ours}, gateway {theirs}"
        for cell, ours, theirs in differences
    ]
    detail = "; ".join(lines) + ("" if complete else "; and more")
    site_digests.note_proof(connection, gateway, differs=True)
    alarms.raise_all(connection, [Alarm(gateway, AlarmKind.STOCK_DIFFERS, detail)])


def _scan(connection: Connection, gateway: str, kept: SiteDigest) -> bool:
    """Whether the balances add up to the digest that was kept."""
    found = snapshot(connection, gateway)
    damaged = found is not None and proof.stock_digest(found.on_hand) != found.kept
    site_digests.note_scan(connection, kept.site_id, damaged=damaged)
    return not damaged

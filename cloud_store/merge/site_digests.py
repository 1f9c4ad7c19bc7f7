"""The digest of each site's stock, kept by the merge in the transaction that changes the stock.

Invariant: a site's digest is read and written under its row's lock, which is taken after those of its balances.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from wire_protocol import proof
from wire_protocol.stock import Cell

RECENT_KEPT: Final = 32  # positions that a gateway's proof may still be compared at
_SQL: Final = sql.load("site_digests")


class SiteDigest(NamedTuple):
    """Where a site is, and the digest of its stock there; `recent` maps the positions of the last merges to theirs."""

    site_id: int
    position: int
    digest: int
    recent: dict[int, int]
    scan_due: bool
    damaged: bool


def keep(connection: Connection, changes: Mapping[int, int]) -> None:
    """Add what a merge has changed to the digests of its sites; the cursors have moved already.

    Args:
        connection: in the merge's transaction.
        changes: for each site of the batch what is added to its digest.
    """
    if not changes:
        return
    sites = {"sites": sorted(changes)}
    known = _locked(connection, sites["sites"])
    positions = dict.fromkeys(changes, 0)
    for site_id, gateway, epoch, seq in connection.execute(_SQL["logs"], sites):
        positions[site_id] = proof.add(positions[site_id], proof.position_change(gateway, epoch, seq))
    digests = {
        # A site that is new here has its stock from this very transaction, or from before digests were kept.
        site_id: _from_rows(connection, site_id) if (digest := known[site_id]) is None else proof.add(digest, change)
        for site_id, change in changes.items()
    }
    columns = {
        "positions": [positions[site_id] for site_id in sites["sites"]],
        "digests": [digests[site_id] for site_id in sites["sites"]],
    }
    connection.execute(_SQL["store"], {**sites, **columns, "kept": 2 * RECENT_KEPT})


def balances(connection: Connection, site_id: int) -> Iterable[tuple[Cell, int]]:
    """On hand of every cell of a site that is not zero."""
    for location, sku, lot, on_hand in connection.execute(_SQL["balances"], {"site_id": site_id}):
        yield Cell(location, sku, lot), on_hand


def of_gateway(connection: Connection, gateway: str, *, scan_s: float) -> SiteDigest | None:
    """The digest of an active gateway's site; None when nothing was merged there yet."""
    row: Any = connection.execute(_SQL["of_gateway"], {"gateway": gateway, "scan_s": scan_s}).fetchone()
    if row is None:
        return None
    site_id, position, digest, recent, *scan = row
    return SiteDigest(site_id, position, digest, dict(zip(recent[::2], recent[1::2], strict=True)), *scan)


def note_scan(connection: Connection, site_id: int, *, damaged: bool) -> None:
    """The site's balances were added up and compared with its digest."""
    connection.execute(_SQL["scanned"], {"site_id": site_id, "damaged": damaged})


def note_proof(connection: Connection, gateway: str, *, differs: bool) -> None:
    """A gateway's stock was compared with the cloud's."""
    connection.execute(_SQL["proved"], {"gateway": gateway, "differs": differs})


def reset(connection: Connection, site_id: int) -> None:
    """Work a site's digest out from its balances, after they were repaired."""
    _locked(connection, [site_id])
    logs = connection.execute(_SQL["logs"], {"sites": [site_id]})
    position = proof.log_position((gateway, epoch, seq) for _, gateway, epoch, seq in logs)
    columns = {"positions": [position], "digests": [_from_rows(connection, site_id)], "kept": 2}
    connection.execute(_SQL["store"], {"sites": [site_id], **columns})


def _locked(connection: Connection, sites: list[int]) -> dict[int, int | None]:
    rows = connection.execute(_SQL["lock"], {"sites": sites}).fetchall()
    if len(rows) < len(sites):
        connection.execute(_SQL["create_missing"], {"sites": sites})
        rows = connection.execute(_SQL["lock"], {"sites": sites}).fetchall()
    return {site_id: digest for site_id, _, digest in rows}


def _from_rows(connection: Connection, site_id: int) -> int:
    return proof.stock_digest(balances(connection, site_id))

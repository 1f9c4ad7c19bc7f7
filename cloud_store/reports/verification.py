"""The cloud's ledger against itself: every balance and variance of a site beside what its entries give.

The entries are read once, in the order of their key, and booked by the definition in `wire_protocol.stock`: no code is
shared with the merge, so no mistake is either. The hours of cells are not looked at: the
merge makes them again where they do not add up.

Invariant: `verify` writes nothing. Invariant: nothing is merged at a site between reading and writing in `rebuild`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from cloud_store.base import audit_log, sql
from cloud_store.base.connection import Connection, patient
from cloud_store.base.errors import unknown_site
from cloud_store.base.ledger_numbers import NEVER, CellKey
from cloud_store.merge import cursors, late_counts, site_digests
from cloud_store.tenancy import registry
from wire_protocol.stock import EntryKey

ENTRIES_PER_READ: Final = 10_000
FINDINGS_MAX: Final = 100
_SQL: Final = sql.load("verification")

Progress = Callable[[int], None]


class VerifiedSite(NamedTuple):
    """A site to look at."""

    tenant: str
    name: str
    site_id: int


class CellState(NamedTuple):
    """A balance by its columns; a clock that is not set is -1."""

    on_hand: int = 0
    moved: int = 0
    counted_hlc: int = NEVER
    last_hlc: int = NEVER


@dataclass(slots=True)
class SiteAudit:
    """What was found at a site: cells that differ as (stored, defined), counts whose variance does."""

    entries: int = 0
    cells: dict[CellKey, tuple[CellState, CellState]] = field(default_factory=dict)
    variances: dict[int, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing differs."""
        return not self.cells and not self.variances


def sites(connection: Connection, tenant: str, site: str | None = None) -> list[VerifiedSite]:
    """The sites of a tenant, or one of them.

    Raises:
        UnknownName: there is none of that name.
    """
    found = [VerifiedSite(*row) for row in connection.execute(_SQL["sites"], {"tenant": tenant, "site": site})]
    if not found:
        raise unknown_site(tenant, site)
    return found


def entry_count(connection: Connection, site: VerifiedSite) -> int:
    """How many entries a site has, for the progress bar; rejected ones are among them."""
    row: Any = connection.execute(_SQL["entry_count"], {"site_id": site.site_id}).fetchone()
    return int(row[0])


def verify(connection: Connection, site: VerifiedSite, progress: Progress = lambda _: None) -> SiteAudit:
    """Compare in one snapshot; `progress` is called with the number of entries read since."""
    with patient(connection):
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return _audit(connection, site, progress)


def rebuild(connection: Connection, site: VerifiedSite, progress: Progress = lambda _: None) -> SiteAudit:
    """Give every cell and count of a site what its entries give; returns what was found before."""
    with patient(connection):
        cursors.own_site(connection, site.site_id)
        found = _audit(connection, site, progress)
        late_counts.own_history(connection)
        connection.execute(_SQL["forget_history"], {"site_id": site.site_id})
        for cell, (_, defined) in found.cells.items():
            statement = "delete_balance" if defined == CellState() else "set_balance"
            connection.execute(_SQL[statement], {**cell._asdict(), **defined._asdict()})
        for count_id, variance in found.variances.items():
            connection.execute(_SQL["set_variance"], {"count_id": count_id, "variance": variance})
        site_digests.reset(connection, site.site_id)
        audit_log.record(
            connection,
            "ledger.rebuild",
            site.name,
            tenant_id=registry.tenant_id(connection, site.tenant),
            balances=len(found.cells),
            variances=len(found.variances),
        )
        return found


class _Book:
    """A site's cells, booked entry by entry in the order of the keys."""

    def __init__(self, adjust_id: int) -> None:
        self.cells: dict[CellKey, CellState] = {}
        self._adjust_id = adjust_id

    def move(self, cell: CellKey, quantity: int, hlc: int) -> None:
        state = self.cells.get(cell, CellState())
        self.cells[cell] = CellState(
            state.on_hand + quantity, state.moved + quantity, state.counted_hlc, max(state.last_hlc, hlc)
        )

    def count(self, cell: CellKey, quantity: int, hlc: int) -> int:
        """Book a count; returns its variance."""
        state = self.cells.get(cell, CellState())
        variance = quantity - state.on_hand
        self.cells[cell] = state._replace(on_hand=quantity, counted_hlc=hlc)
        adjust = cell._replace(location_id=self._adjust_id)
        taken = self.cells.get(adjust, CellState())
        self.cells[adjust] = taken._replace(on_hand=taken.on_hand - variance)
        return variance


def _audit(connection: Connection, site: VerifiedSite, progress: Progress) -> SiteAudit:
    found = SiteAudit()
    row = connection.execute(_SQL["adjust"], {"site_id": site.site_id}).fetchone()
    book = _Book(row[0] if row else 0)
    for key, item, lot, quantity, source, destination, count_id, variance in _entries(
        connection, site, found, progress
    ):
        if count_id is None:
            book.move(CellKey(source, item, lot), -quantity, key.hlc)
            book.move(CellKey(destination, item, lot), quantity, key.hlc)
        elif (defined := book.count(CellKey(destination, item, lot), quantity, key.hlc)) != variance:
            found.variances[count_id] = defined
            _note(found, f"entry {key.seq} of {key.gateway}: variance {variance}, the entries give {defined}")
    stored = {
        CellKey(*row[:3]): CellState(*row[3:])
        for row in connection.execute(_SQL["balances"], {"site_id": site.site_id})
    }
    for cell in sorted(stored.keys() | book.cells.keys()):
        has, should = stored.get(cell, CellState()), book.cells.get(cell, CellState())
        if has != should:
            found.cells[cell] = (has, should)
            _note(found, f"{_named(connection, cell)}: {has.on_hand} on hand, the entries give {should.on_hand}")
    return found


def _entries(
    connection: Connection, site: VerifiedSite, found: SiteAudit, progress: Progress
) -> Iterator[tuple[Any, ...]]:
    with connection.cursor(name="audit") as cursor:
        cursor.itersize = ENTRIES_PER_READ
        cursor.execute(_SQL["entries"], {"site_id": site.site_id})
        while rows := cursor.fetchmany(ENTRIES_PER_READ):
            for row in rows:
                yield EntryKey(*row[:4]), *row[4:]
            found.entries += len(rows)
            progress(len(rows))


def _named(connection: Connection, cell: CellKey) -> str:
    row: Any = connection.execute(_SQL["names"], cell._asdict()).fetchone()
    location, sku, lot = row or cell
    return f"{sku}{f' lot {lot}' if lot else ''} at {location}"


def _note(found: SiteAudit, finding: str) -> None:
    if len(found.findings) < FINDINGS_MAX:
        found.findings.append(finding)

"""The words of ledger entries as integers: items, locations, lots, devices, epochs and metrics.

Words are resolved in a short transaction of their own before the merge. A word that is not registered becomes a stub:
the goods exist. Stubs are harmless when the merge that needed them rolls back, and so the cache never holds the id of
a row that was rolled back.

Invariant: the cache belongs to one connection. After a reconnect the server may be an older replica in which an id
means nothing, or something else.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import NamesExhausted
from cloud_store.base.ledger_numbers import NO_LOT, CellKey
from cloud_store.merge.frame_entries import Numbers
from cloud_store.merge.plan import PlannedFrame
from wire_protocol import proof
from wire_protocol.entries import Reading
from wire_protocol.names import ADJUST, is_virtual
from wire_protocol.stock import Cell

WORDS_CACHED_MAX: Final = 200_000
NAMES_OF_TENANT_MAX: Final = 5_000_000
CELLS_CACHED_MAX: Final = 500_000

Word: TypeAlias = tuple[int, str]
_SQL: Final = sql.load("dictionary")


class WordTable:
    """One kind of word, each with its owner: (tenant, SKU), (site, location), (item, lot).

    `of[owner]` has an owner's words, so that a column of a frame is looked up by its words alone.
    """

    def __init__(self, noun: str) -> None:
        self._select, self._insert = _SQL[noun], _SQL[f"add_{noun}"]
        self.of: defaultdict[int, dict[str, int]] = defaultdict(dict)
        self.words: dict[int, Word] = {}

    def resolve(
        self, connection: Connection, words: Iterable[Word], admit: Callable[[list[Word]], None] = lambda _: None
    ) -> None:
        """Make sure that `of` has all these words, creating what the database lacks and `admit` does not refuse."""
        missing = self._missing(words)
        if not missing:
            return
        if len(self.words) + len(missing) > WORDS_CACHED_MAX:
            # The words of this very batch must stay; forgetting all and asking again is rare and simple.
            self.of.clear()
            self.words.clear()
            missing = sorted(words)
        self._read(connection, missing)
        if unknown := self._missing(missing):
            admit(unknown)
            connection.execute(self._insert, _columns(unknown))
            self._read(connection, unknown)

    def _missing(self, words: Iterable[Word]) -> list[Word]:
        return sorted((owner, word) for owner, word in words if word not in self.of[owner])

    def _read(self, connection: Connection, words: list[Word]) -> None:
        for owner, word, number in connection.execute(self._select, _columns(words)):
            self.of[owner][word] = number
            self.words[number] = owner, word


def _require_room(connection: Connection, added: Mapping[int, int]) -> None:
    """Refuse names beyond what a tenant may have; a quota of the tenant's replaces the usual bound."""
    parameters = {"tenants": list(added), "usual_max": NAMES_OF_TENANT_MAX}
    for tenant_id, tenant, names, names_max in connection.execute(_SQL["names_of_tenants"], parameters):
        if names + added[tenant_id] > names_max:
            raise NamesExhausted(
                f"Tenant {tenant} has {names} names of items, places, lots and devices of {names_max} allowed.",
                hint=f"Raise it: stocktide cloud tenant quota {tenant} --names {2 * names_max}",
            )


def _columns(words: list[Word]) -> Mapping[str, list[int] | list[str]]:
    return {"owners": [owner for owner, _ in words], "words": [word for _, word in words]}


@dataclass(slots=True)
class Vocabulary:
    """The words that a batch uses."""

    items: set[Word] = field(default_factory=set)
    locations: set[Word] = field(default_factory=set)
    lots: set[tuple[int, str, str]] = field(default_factory=set)
    devices: set[Word] = field(default_factory=set)
    epochs: set[Word] = field(default_factory=set)
    metrics: set[Word] = field(default_factory=set)
    # Whose the owners of words are.
    tenants_of_sites: dict[int, int] = field(default_factory=dict)
    tenants_of_gateways: dict[int, int] = field(default_factory=dict)

    def add(self, planned: PlannedFrame) -> None:
        """Collect the words of a frame."""
        gateway = planned.gateway
        self.tenants_of_sites[gateway.site_id] = gateway.tenant_id
        self.tenants_of_gateways[gateway.gateway_id] = gateway.tenant_id
        self.epochs.add((gateway.gateway_id, planned.arrived.frame.header.epoch))
        # Every site needs it: a late movement books against it without any count in the batch.
        self.locations.add((gateway.site_id, ADJUST))
        # Words first, owners then: the same few words come again and again in a frame.
        moved = planned.movements
        skus, locations = set(moved.skus), {*moved.sources, *moved.destinations}
        devices: set[str | None] = set(moved.devices or ())
        lots: set[tuple[str, str | None]] = set() if moved.lots is None else {*zip(moved.skus, moved.lots, strict=True)}
        for _, entry in planned.others:
            devices.add(entry.device)
            if isinstance(entry, Reading):
                self.metrics.update((gateway.tenant_id, name) for name in entry.values)
            else:
                skus.add(entry.sku)
                lots.add((entry.sku, entry.lot))
                locations.add(entry.location)
        self.devices.update((gateway.gateway_id, device) for device in devices if device is not None)
        self.items.update((gateway.tenant_id, sku) for sku in skus)
        self.lots.update((gateway.tenant_id, sku, lot) for sku, lot in lots if lot is not None)
        self.locations.update((gateway.site_id, location) for location in locations)


class Dictionary:
    """The ids of words, cached for one connection."""

    def __init__(self) -> None:
        self._tables = {
            noun: WordTable(noun) for noun in ("items", "locations", "lots", "devices", "epochs", "metrics")
        }
        self.items = self._tables["items"].of
        self.locations = self._tables["locations"].of
        self.lots = self._tables["lots"].of
        self.devices = self._tables["devices"].of
        self.epochs = self._tables["epochs"].of
        self.metrics = self._tables["metrics"].of
        self._cell_hashes: dict[tuple[int, int, int], int] = {}

    def resolve(self, connection: Connection, words: Vocabulary) -> Mapping[int, int]:
        """Give every word an id; each kind in its own short transaction. Returns how many were new, by tenant.

        Raises:
            NamesExhausted: a tenant would have more names than it may.
        """
        new: Counter[int] = Counter()

        def admit(tenant_of: Callable[[int], int], unknown: list[Word]) -> None:
            added = Counter(tenant_of(owner) for owner, _ in unknown)
            _require_room(connection, new + added)
            new.update(added)

        own: Callable[[int], int] = int
        kinds: tuple[tuple[str, Callable[[int], int]], ...] = (
            ("items", own),
            ("locations", words.tenants_of_sites.__getitem__),
            ("devices", words.tenants_of_gateways.__getitem__),
            ("epochs", words.tenants_of_gateways.__getitem__),
            ("metrics", own),
        )
        try:
            for noun, tenant_of in kinds:
                self._tables[noun].resolve(connection, getattr(words, noun), partial(admit, tenant_of))
            # A lot belongs to an item, so it comes after them.
            lots = {(self.items[owner][sku], lot): owner for owner, sku, lot in words.lots}
            owners = {item_id: tenant for (item_id, _), tenant in lots.items()}
            self._tables["lots"].resolve(connection, lots, partial(admit, owners.__getitem__))
        except NamesExhausted:
            self._count_names(connection, new)
            raise
        self._count_names(connection, new)
        return new

    def _count_names(self, connection: Connection, new: Mapping[int, int]) -> None:
        if new:
            connection.execute(_SQL["count_names"], {"tenants": list(new), "names": list(new.values())})

    def site_of(self, location_id: int) -> int:
        """The site of a location of the batch."""
        return self._tables["locations"].words[location_id][0]

    def sites_of(self, location_ids: Iterable[int]) -> list[int]:
        """The sites of locations of the batch."""
        words = self._tables["locations"].words
        return [words[location_id][0] for location_id in location_ids]

    def are_virtual(self, location_ids: Numbers) -> NDArray[np.bool_]:
        """Which of some locations of the batch stand for the world outside the shelves."""
        words = self._tables["locations"].words
        distinct, of_each = np.unique(location_ids, return_inverse=True)
        virtual = [is_virtual(words[location_id][1]) for location_id in distinct.tolist()]
        return np.array(virtual, dtype=np.bool_)[of_each]

    def adjust_of(self, location_id: int) -> int:
        """The `@adjust` of a location's site."""
        return self.locations[self.site_of(location_id)][ADJUST]

    def named(self, cells: Iterable[CellKey]) -> frozenset[Cell]:
        """Cells of the batch by their names."""
        words = {noun: self._tables[noun].words for noun in ("locations", "items", "lots")}
        return frozenset(
            Cell(words["locations"][location][1], words["items"][item][1], words["lots"][lot][1] if lot else "")
            for location, item, lot in cells
        )

    def cell_hashes(self, cells: Sequence[tuple[int, int, int]]) -> list[int]:
        """`proof.cell_hash` of cells of the batch, each a location, an item and a lot."""
        known = self._cell_hashes
        new = [cell for cell in cells if cell not in known]
        if len(known) + len(new) > CELLS_CACHED_MAX:
            known.clear()
            new = list(cells)
        locations, items, lots = (self._tables[noun].words for noun in ("locations", "items", "lots"))
        for cell in new:
            location_id, item_id, lot_id = cell
            lot = lots[lot_id][1] if lot_id != NO_LOT else ""
            known[cell] = proof.new_cell_hash(locations[location_id][1], items[item_id][1], lot)
        return [*map(known.__getitem__, cells)]

"""Replaying a recording: which devices it needs, what stock it presumes, and what happens at them.

A plan reads the file once to learn its sites, devices, goods and bad rows, before anything is published. Each site is
then a stream of its own, so a gateway that is away does not hold up the others.

Invariant: a row becomes one event, and the devices of a plan are known before it is played.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from firmware_sim.errors import BadInput, BadRecording
from firmware_sim.firmware.happening import SHOP, Happening, Scan, sale
from firmware_sim.fleet.device import SimulatedDevice
from firmware_sim.fleet.fleet import Fleet, Stream, Timeline
from firmware_sim.recordings import recording
from firmware_sim.recordings.recording import BadRow
from wire_protocol.address import BrokerAddress
from wire_protocol.entries import QUANTITY_MAX

HANDHELD: Final = "handheld-1"
OPENING_ACTOR: Final = "opening stock"
BAD_ROWS_LISTED_MAX: Final = 20
SKUS_MAX: Final = 1_000_000
DEVICES_MAX: Final = 10_000


@dataclass(slots=True)
class SitePlan:
    """What a recording holds of one site. `sold` counts pieces per SKU, returns not subtracted."""

    site: str
    rows: int = 0
    devices: dict[str, int] = field(default_factory=dict)
    sold: Counter[str] = field(default_factory=Counter)
    first_ms: int = 0
    last_ms: int = 0


@dataclass(slots=True)
class ReplayPlan:
    """A recording that was looked through: its sites in order of size, its bad rows, and how to play it.

    `device_names[site]` are the devices that the site's gateway must know. `prefixed` puts the site's name before
    each, for sites that share one gateway.
    """

    path: Path
    sites: dict[str, SitePlan]
    bad_rows: int
    bad_rows_listed: list[BadRow]
    opening_stock: bool = False
    prefixed: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        return sum(site.rows for site in self.sites.values())

    @property
    def events(self) -> int:
        """How many events a whole replay makes, opening stock included."""
        opening = sum(len(site.sold) for site in self.sites.values()) if self.opening_stock else 0
        return self.rows + opening

    @property
    def first_ms(self) -> int:
        return min((site.first_ms for site in self.sites.values()), default=0)

    @property
    def span_s(self) -> float:
        """How many seconds were recorded, so that `speed = span_s / 30` plays it in half a minute."""
        return (max((site.last_ms for site in self.sites.values()), default=0) - self.first_ms) / 1_000

    @property
    def device_names(self) -> dict[str, list[str]]:
        extra = [HANDHELD] if self.opening_stock else []
        return {
            name: [self._name(name, device) for device in (*sorted(site.devices), *extra)]
            for name, site in self.sites.items()
        }

    def _name(self, site: str, device: str) -> str:
        return f"{site}.{device}" if site in self.prefixed else device

    def streams(self, *, seed: int = 1, boot: int = 1, memory_events_max: int | None = None) -> list[Stream]:
        """One stream for each site, whose gateway has the site's name."""
        made = []
        for site, names in self.device_names.items():
            units = [
                SimulatedDevice.plain(name, seed=seed, boot=boot, memory_events_max=memory_events_max) for name in names
            ]
            made.append(Stream(site, units, self._phases(self.sites[site])))
        return made

    def fleet(self, brokers: Mapping[str, BrokerAddress], *, boot: int = 1, seed: int = 1, **options: Any) -> Fleet:
        """A fleet that plays this plan; `brokers` by site, `options` as for `Fleet`."""
        return Fleet(brokers, self.streams(seed=seed, boot=boot), start_ms=self.first_ms, seed=seed, **options)

    def _phases(self, site: SitePlan) -> list[Timeline]:
        sales = self._sales(site)
        return [self._opening(site), sales] if self.opening_stock else [sales]

    def _opening(self, site: SitePlan) -> Iterator[tuple[str, Happening]]:
        device = self._name(site.site, HANDHELD)
        for sku, quantity in site.sold.items():
            scan = Scan(
                kind="receive", sku=sku, quantity=min(quantity, QUANTITY_MAX), destination=SHOP, actor=OPENING_ACTOR
            )
            yield device, Happening(self.first_ms, scan)

    def _sales(self, site: SitePlan) -> Iterator[tuple[str, Happening]]:
        def reported_already(_bad: BadRow) -> None:
            """The plan has counted and listed it."""

        for row in recording.read(self.path, sites={site.site}, limit=site.rows, on_bad=reported_already):
            yield self._name(row.site, row.device), Happening(row.at_ms, sale(row.sku, row.quantity))


def plan(
    path: Path,
    *,
    sites: Collection[str] | None = None,
    limit: int | None = None,
    limit_per_site: int | None = None,
    opening_stock: bool = False,
    strict: bool = False,
    prefixed: Collection[str] = (),
) -> ReplayPlan:
    """Look through a recording.

    Args:
        path: the recording.
        sites: only these; each must be in it.
        limit: rows at most, in all.
        limit_per_site: rows at most, of each site.
        opening_stock: a handheld first receives of each SKU what is sold of it, so no shelf goes below zero.
        strict: a bad row is an error.
        prefixed: sites whose devices get the site's name before theirs.

    Raises:
        BadRecording: it cannot be read, or has a bad row and `strict` is set.
        BadInput: a site is not in it, or nothing is.
    """
    made = ReplayPlan(path, {}, 0, [], opening_stock=opening_stock, prefixed=frozenset(prefixed))

    def note_bad(bad: BadRow) -> None:
        made.bad_rows += 1
        if len(made.bad_rows_listed) < BAD_ROWS_LISTED_MAX:
            made.bad_rows_listed.append(bad)

    taken = 0
    for row in recording.read(path, sites=sites, on_bad=None if strict else note_bad):
        if taken == limit:
            break
        taken += _note_row(made, row, limit_per_site)
    _check(made, sites)
    made.sites = dict(sorted(made.sites.items(), key=lambda item: (-item[1].rows, item[0])))
    return made


def _note_row(made: ReplayPlan, row: recording.Row, limit_per_site: int | None) -> bool:
    site = made.sites.get(row.site)
    if site is None:
        site = made.sites[row.site] = SitePlan(row.site, first_ms=row.at_ms, last_ms=row.at_ms)
    if site.rows == limit_per_site:
        return False
    site.rows += 1
    site.devices[row.device] = site.devices.get(row.device, 0) + 1
    site.first_ms, site.last_ms = min(site.first_ms, row.at_ms), max(site.last_ms, row.at_ms)
    site.sold[row.sku] += max(row.quantity, 0)
    if len(site.sold) > SKUS_MAX or len(site.devices) > DEVICES_MAX or len(made.sites) > DEVICES_MAX:
        raise BadRecording(f"It has more than {SKUS_MAX} SKUs or {DEVICES_MAX} devices at a site, or as many sites.")
    return True


def _check(made: ReplayPlan, sites: Collection[str] | None) -> None:
    absent = sorted(set(sites or ()) - made.sites.keys())
    if absent:
        raise BadInput(f"The recording has nothing of {', '.join(absent)}.", hint=f"stocktide sim list {made.path}")
    if not made.sites:
        raise BadInput(f"There is nothing to play in {made.path.name}.")
    for site in made.sites.values():
        site.sold = +site.sold  # what was only returned needs no opening stock

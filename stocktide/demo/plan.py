"""What the demo builds: two tenants, three sites, a gateway each, and which recorded shop plays at which site."""

from dataclasses import dataclass
from typing import Final

SEED: Final = 367


@dataclass(frozen=True, slots=True)
class DemoSite:
    """A site with its gateway; `recorded` is the site's name in the recording that is replayed there."""

    tenant: str
    name: str
    gateway: str
    recorded: str


SITES: Final = (
    DemoSite("albion", "london", "gw-london", "united-kingdom"),
    DemoSite("albion", "dublin", "gw-dublin", "eire"),
    DemoSite("rhenus", "berlin", "gw-berlin", "germany"),
)
TENANTS: Final = tuple(dict.fromkeys(site.tenant for site in SITES))
CUT_SITE: Final = SITES[0]
"""The site whose uplink is cut in the middle."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the demo's acts take, in seconds."""

    replay_s: float = 40.0
    cut_after_s: float = 12.0
    cut_for_s: float = 8.0
    settle_s_max: float = 30.0
    events_max: int = 2_000
    """Recorded transactions per site."""

"""The demo's devices: tills that replay recorded transactions, and a temperature probe at each site.

A site is called by its recorded name here, which is what the recording and the fleet know it by.
"""

from functools import lru_cache

from firmware_sim.firmware.happening import SHOP, Happening, Sample
from firmware_sim.fleet.device import SimulatedDevice
from firmware_sim.fleet.fleet import Fleet, Stream
from firmware_sim.fleet.link import LinkOptions
from firmware_sim.recordings import replay
from firmware_sim.recordings.replay import ReplayPlan
from firmware_sim.scenarios import builtin
from stocktide.demo.plan import SEED, SITES, DemoSite, Timing
from wire_protocol.address import BrokerAddress

PROBE = "probe-1"
READINGS = 40


@lru_cache(maxsize=len(SITES))
def _plan(site: DemoSite, events_max: int) -> ReplayPlan:
    return replay.plan(builtin.ONLINE_RETAIL, sites={site.recorded}, limit_per_site=events_max, opening_stock=True)


def names(site: DemoSite, timing: Timing) -> list[str]:
    """The devices that a site's gateway must know."""
    return [*_plan(site, timing.events_max).device_names[site.recorded], PROBE]


def watched(timing: Timing) -> list[tuple[DemoSite, str, str]]:
    """The SKU of each site that moves most, with its location."""
    plans = {site: _plan(site, timing.events_max) for site in SITES}
    return [(site, plan.sites[site.recorded].sold.most_common(1)[0][0], SHOP) for site, plan in plans.items()]


def fleet(site: DemoSite, broker: BrokerAddress, timing: Timing) -> Fleet:
    """A site's devices; whatever was recorded there is played in `timing.replay_s`."""
    plan = _plan(site, timing.events_max)
    return Fleet(
        {site.recorded: broker},
        [*plan.streams(seed=SEED), _probe(site, plan)],
        speed=max(1.0, plan.span_s / timing.replay_s),
        start_ms=plan.first_ms,
        seed=SEED,
        options=LinkOptions(mqtt_version="3.1.1", reconnect_s_max=2),
    )


def _probe(site: DemoSite, plan: ReplayPlan) -> Stream:
    """A fridge that is opened now and then, measured at even times."""
    step_ms = round(plan.span_s * 1_000 / READINGS)
    timeline = [
        (PROBE, Happening(plan.first_ms + number * step_ms, Sample({"temperature_c": 4.0 + number % 7 / 10})))
        for number in range(READINGS)
    ]
    return Stream(site.recorded, [SimulatedDevice.plain(PROBE, seed=SEED, boot=1, memory_events_max=None)], [timeline])

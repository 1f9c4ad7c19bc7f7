"""The demo's devices: tills that replay recorded transactions, and a temperature probe at each site.

A site is called by its recorded name here, which is what the recording and the fleet know it by.
"""

from functools import lru_cache

from firmware_sim import recording, replay
from firmware_sim.address import BrokerAddress
from firmware_sim.fleet import Fleet, Stream
from firmware_sim.happening import SHOP, Happening, Sample
from firmware_sim.link import LinkOptions
from firmware_sim.replay import Plan
from firmware_sim.unit import Unit
from stocktide.demo.plan import SEED, SITES, Site, Timing

PROBE = "probe-1"
READINGS = 40
WATCHED_SKUS_PER_SITE = 1


@lru_cache(maxsize=1)
def _plan(timing: Timing) -> Plan:
    return replay.plan(
        recording.BUILT_IN,
        sites={site.recorded for site in SITES},
        limit_per_site=timing.events_max,
        opening_stock=True,
    )


def names(site: Site, timing: Timing) -> list[str]:
    """The devices that a site's gateway must know."""
    return [*_plan(timing).device_names[site.recorded], PROBE]


def watched(timing: Timing) -> list[tuple[Site, str, str]]:
    """A SKU of each site that moves a lot, with its location."""
    plan = _plan(timing)
    return [
        (site, sku, SHOP)
        for site in SITES
        for sku, _ in plan.sites[site.recorded].sold.most_common(WATCHED_SKUS_PER_SITE)
    ]


def fleet(brokers: dict[str, BrokerAddress], timing: Timing) -> Fleet:
    """All devices; the recorded time is played in `timing.replay_s`."""
    plan = _plan(timing)
    streams = [*plan.streams(seed=SEED), *(_probe(site, plan) for site in SITES)]
    return Fleet(
        brokers,
        streams,
        speed=plan.span_s / timing.replay_s,
        start_ms=plan.first_ms,
        seed=SEED,
        options=LinkOptions(mqtt_version="3.1.1", reconnect_s_max=2),
    )


def _probe(site: Site, plan: Plan) -> Stream:
    """A fridge that is opened now and then, measured at even times."""
    step_ms = round(plan.span_s * 1_000 / READINGS)
    timeline = [
        (PROBE, Happening(plan.first_ms + number * step_ms, Sample({"temperature_c": 4.0 + number % 7 / 10})))
        for number in range(READINGS)
    ]
    return Stream(site.recorded, [Unit.plain(PROBE, seed=SEED, boot=1, memory_events_max=None)], [timeline])

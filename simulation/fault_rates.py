"""What can go wrong in a universe, and how often.

Every seed draws its own fault rates: each fault is absent in some universes and frequent in others, so that faults also
meet in unusual company ("swarm testing", Groce et al., 2012).
"""

import random
from dataclasses import dataclass, fields
from typing import Final

FAULT_SHARE: Final = 0.6  # of all universes have any one fault


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Chances for each message or step, and rates in events an hour for each gateway, worker or the whole cloud."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    gateway_dies: float = 0.0  # at each crash point: before or after a commit, before a message
    worker_dies: float = 0.0
    commit_unheard: float = 0.0  # the database commits and the worker does not hear of it
    power_cuts_per_h: float = 0.0
    partitions_per_h: float = 0.0
    disk_full_per_h: float = 0.0
    clock_steps_per_h: float = 0.0
    clock_lost: float = 0.0  # at each boot
    restores_per_h: float = 0.0
    clones_per_h: float = 0.0
    replacements_per_h: float = 0.0
    worker_deaths_per_h: float = 0.0
    broker_wipes_per_h: float = 0.0
    outages_per_h: float = 0.0
    failovers_per_h: float = 0.0
    moves_per_h: float = 0.0


CALM: Final = FaultRates()
WORST: Final = FaultRates(
    drop=0.15,
    duplicate=0.1,
    reorder=0.1,
    corrupt=0.03,
    gateway_dies=0.01,
    worker_dies=0.02,
    commit_unheard=0.05,
    power_cuts_per_h=0.3,
    partitions_per_h=0.5,
    disk_full_per_h=0.2,
    clock_steps_per_h=0.2,
    clock_lost=0.4,
    restores_per_h=0.25,
    clones_per_h=0.12,
    replacements_per_h=0.2,
    worker_deaths_per_h=0.5,
    broker_wipes_per_h=0.5,
    outages_per_h=0.3,
    failovers_per_h=0.4,
    moves_per_h=0.15,
)


def draw(rng: random.Random) -> FaultRates:
    """The fault rates of one universe: each fault with a chance of its own, from mild to the worst."""
    drawn = {}
    for fault in fields(FaultRates):
        severity = rng.random()
        drawn[fault.name] = getattr(WORST, fault.name) * severity if rng.random() < FAULT_SHARE else 0.0
    return FaultRates(**drawn)

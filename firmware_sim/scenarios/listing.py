"""What comes with Stocktide, and what a file needs: for people who are about to register devices."""

from pathlib import Path
from typing import TypeAlias

from firmware_sim.recordings import replay
from firmware_sim.scenarios import builtin, scenario

Rows: TypeAlias = list[list[str | list[str]]]


def ours() -> Rows:
    """Name, what it is, description."""
    rows: Rows = [[path.stem, "scenario", scenario.load(path).description] for path in builtin.scenarios()]
    for path in builtin.recordings():
        plan = replay.plan(path)
        text = f"{plan.rows} rows of {len(plan.sites)} sites over {plan.span_s / 86_400:.0f} days"
        rows.append([path.name.partition(".")[0], "recording", text])
    return rows


def devices(path: Path) -> Rows:
    """Gateway (of a recording: site) and its devices, opening stock's handheld included."""
    if path.suffix in {".yaml", ".yml"}:
        found = scenario.load(path).device_names
    else:
        found = replay.plan(path, opening_stock=True).device_names
    return [[gateway, names] for gateway, names in found.items()]

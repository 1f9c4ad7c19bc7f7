"""A first day: the pages for newcomers, run as they stand, from empty machines to the first number in the cloud."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from testbed import first_day
from testbed.eventually import eventually
from testbed.first_day import World
from testbed.first_day.machines import is_possible

ROOT: Final = Path(__file__).resolve().parents[2]
CLOUD: Final = ROOT / "docs" / "first-cloud.md"
GATEWAY: Final = ROOT / "docs" / "first-gateway.md"
WITHIN_S: Final = 30.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two empty machines with the wheels that `make wheels` builds."""
    out = tmp_path / "dist"
    subprocess.run([sys.executable, str(ROOT / "deploy/wheels/build.py"), str(out)], check=True, capture_output=True)
    with first_day.world(tmp_path / "world", ("cloud", "gateway"), sorted(out.iterdir())) as made:
        yield made


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not is_possible(), reason="only root can make machines, and only where overlayfs is")
def test_the_pages_lead_from_empty_machines_to_the_first_number(world: World) -> None:
    """A newcomer who follows the pages must not get stuck at any step."""
    claim = ""
    blocks = [*first_day.read(CLOUD), *first_day.read(GATEWAY)]
    assert {(block.machine, block.account) for block in blocks} == {
        (machine, account) for machine in ("cloud", "gateway") for account in ("root", "stocktide")
    }
    for block in blocks:
        answer = world[block.machine].run(block.commands, account=block.account, typed=claim, where=block.where)
        if "gateway claim" in block.commands:
            claim = next(line.split()[1] for line in answer.splitlines() if line.startswith("claim ")) + "\n"
    _verify_units(world)

    def in_the_cloud() -> dict[str, int]:
        answer = world["cloud"].run("stocktide cloud stock --tenant acme --json", account="stocktide")
        return {row["sku"]: row["on_hand"] for row in json.loads(answer)}

    eventually(lambda: in_the_cloud() == {"SKU-1": 22}, within_s=WITHIN_S)
    status = json.loads(world["gateway"].run("stocktide edge status --json", account="stocktide"))
    assert {name: condition["ok"] for name, condition in status["conditions"].items()} == {
        "devices": True, "link": True, "certificate": True, "cloud": True,
    }  # fmt: skip


def _verify_units(world: World) -> None:
    """The real systemd must take every unit that the wheels bring; here systemctl is a stand-in."""
    for name in ("cloud", "gateway"):
        world[name].run("systemd-analyze verify /etc/systemd/system/*.service")

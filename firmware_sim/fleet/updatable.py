"""Devices whose firmware can be exchanged, run until they are stopped. Each keeps its slots in a folder of its own.

Invariant: killing the process is cutting the devices' power, and starting it again is switching them on.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from firmware_sim.firmware.event_queue import Firmware
from firmware_sim.firmware.flash import FolderFlash
from firmware_sim.firmware.updater import Updater
from firmware_sim.fleet.device import SimulatedDevice, radio_of, rng_of
from firmware_sim.fleet.link import Link, LinkOptions
from firmware_sim.fleet.pace import Pace
from firmware_sim.fleet.trust import TrustedKey
from wire_protocol.address import BrokerAddress

LOOK_S: Final = 0.1


def device(
    name: str, folder: Path, trusted: TrustedKey, *, model: str, factory: str, health_ms: int, boot: int = 1
) -> SimulatedDevice:
    """A device with its flash memory in `folder/name`."""
    flash = FolderFlash(folder / name, factory)
    updater = Updater(model=model, flash=flash, trusted=trusted.signed, health_ms=health_ms)
    return SimulatedDevice(Firmware(name=name, rng=rng_of(1, name, "firmware"), boot=boot), radio_of(1, name), updater)


async def run(
    units: Sequence[SimulatedDevice], broker: BrokerAddress, options: LinkOptions, report: Callable[[str], None]
) -> None:
    """Keep devices connected until cancelled; `report` gets a line whenever one of them has news."""
    pace = Pace(1.0)
    links = [
        Link("gateway", broker, unit, pace=pace, options=options, rng=random.Random(unit.name))  # noqa: S311 - jitter
        for unit in units
    ]
    async with asyncio.TaskGroup() as tasks:
        for link in links:
            tasks.create_task(link.run(), name=f"sim.device[{link.name}]")
        tasks.create_task(_report_news(units, report), name="sim.news")


async def _report_news(units: Sequence[SimulatedDevice], report: Callable[[str], None]) -> None:
    said: dict[str, str] = {}
    while True:
        for unit in units:
            line = _line(unit)
            if said.get(unit.name) != line:
                said[unit.name] = line
                report(line)
        await asyncio.sleep(LOOK_S)


def _line(unit: SimulatedDevice) -> str:
    updater = unit.updater
    if updater is None:
        return unit.name
    status = updater.status()
    line = f"{unit.name} runs {updater.version}"
    if status is not None:
        line += f", release {status.release}: {status.state}"
        line += f", {status.reason}" if status.reason else ""
    return line

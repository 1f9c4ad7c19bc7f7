"""Gateways that lose their past or share it: backups restored, disks cloned, machines replaced and plugged in again.

Invariant: what is destroyed is compared with what is left, and only what is nowhere else is excused.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Final

from simulation.disk import Disk
from simulation.edge.machine import Machine
from simulation.steps import HOUR_MS
from simulation.universe import Universe

BACKUP_AGE_MS: Final = (60_000, 8 * HOUR_MS)
BUSY_MS: Final = 20_000
AWAY_MS: Final = (60_000, HOUR_MS)
REVIVED_MS: Final = (10 * 60_000, 6 * HOUR_MS)
COPY_MS: Final = (BUSY_MS, 3 * BUSY_MS)
SOON_MS: Final = (BUSY_MS, 10 * 60_000)
REVIVED_SHARE: Final = 0.6
WORST_MOMENT_SHARE: Final = 0.6
MISFORTUNE_SHARE: Final = 0.5
MISFORTUNE_MS: Final = (5_000, 10 * 60_000)
COMMITS_MAX: Final = 12
MACHINES_PER_GATEWAY: Final = 4


class Disasters:
    """What an administrator does to disks, knowing nothing of ledgers."""

    def __init__(self, universe: Universe) -> None:
        self._universe, self._world = universe, universe.world
        self._rng = universe.world.rng("disasters")
        self._revivals: dict[str, Machine] = {}
        self._fates: set[str] = set()

    def _victim(self) -> Machine | None:
        """A machine that is in use, of which nothing is planned yet."""
        free = [
            machine
            for machine in self._universe.machines.values()
            if not machine.retired and machine.name not in self._fates
        ]
        return self._rng.choice(free) if free else None

    def _misfortune(self) -> None:
        """It seldom comes alone: soon after, the database falls back, where it does so at all."""
        if self._world.fault_rates.failovers_per_h and self._rng.random() < MISFORTUNE_SHARE:
            self._later(MISFORTUNE_MS, lambda: self._universe.fail_over(self._rng.randint(1, COMMITS_MAX)))

    def _room(self, gateway: str) -> bool:
        machines = self._universe.machines.values()
        return sum(1 for machine in machines if machine.gateway == gateway) < MACHINES_PER_GATEWAY

    def _later(self, bounds: tuple[int, int], step: Callable[[], None]) -> None:
        def run() -> None:
            if self._universe.stormy:
                step()

        self._world.schedule.after(self._rng.randint(*bounds), run)

    # --- restored -----------------------------------------------------------------------------------------------

    def back_up(self) -> None:
        """A backup is made; some hours later it is put back over the disk."""
        if (machine := self._victim()) is not None:
            self._fates.add(machine.name)
            machine.note("is backed up")
            low, high = (math.log(age) for age in BACKUP_AGE_MS)
            age_ms = round(math.exp(self._rng.uniform(low, high)))
            self._later((age_ms, age_ms), partial(self._restore, machine, machine.disk.copy()))

    def _restore(self, machine: Machine, backup: Disk) -> None:
        self._fates.discard(machine.name)
        if machine.retired:
            return
        if machine.alive:
            machine.die()
        self._later((500, BUSY_MS), machine.power_on)
        checks, old = self._world.checks, machine.disk
        boots = old.taught_boots() - backup.taught_boots()
        lost = set(old.content()) - set(backup.content())
        machine.replace_disk(backup)
        checks.disturbed.add(machine.gateway)
        checks.forgot(machine, boots)
        self._universe.shipped |= lost & self._universe.store.places.keys()
        gone = checks.destroyed(self._universe.store, lost, f"the disk of {machine.name} was overwritten")
        machine.note(f"is restored from its backup: {len(lost)} entries less, {gone} of them nowhere else")
        self._busy(machine)
        self._misfortune()

    def _busy(self, *machines: Machine) -> None:
        """People try out what was mended."""
        for machine in machines:
            for device in machine.devices.values():
                for _ in range(2):
                    self._later((0, BUSY_MS), device.scan)

    # --- cloned -------------------------------------------------------------------------------------------------

    def clone(self) -> None:
        """A disk is copied into a second machine, and both run."""
        machine = self._victim()
        if machine is None or not self._room(machine.gateway):
            return
        self._world.checks.disturbed.add(machine.gateway)
        twin = self._universe.add_machine(machine.disk.copy(), machine.site)
        machine.note(f"is cloned into {twin.name}")
        self._universe.equip(twin)
        self._busy(machine, twin)
        self._misfortune()

    # --- replaced, and back again -------------------------------------------------------------------------------

    def replace(self) -> None:
        """A machine breaks, at the worst moment if it can: right after a commit, before the receipt."""
        old = self._victim()
        if old is None or not self._room(old.gateway):
            return
        if self._rng.random() < WORST_MOMENT_SHARE:
            self._fates.add(old.name)
            old.doom = partial(self._replace, old)
        else:
            self._replace(old)

    def _replace(self, old: Machine) -> None:
        """Another machine takes its place, with an empty ledger; the old one may come back."""
        self._fates.discard(old.name)
        if not self._universe.stormy:
            return
        new = self._succeed(old, self._universe.empty_disk(old.gateway))
        old.note(f"breaks and is replaced by {new.name}")
        self._misfortune()
        if self._rng.random() < REVIVED_SHARE:
            self._plug_in_later(old, REVIVED_MS)
        else:
            self._scrap(old)

    def _succeed(self, old: Machine, disk: Disk) -> Machine:
        """Another machine with this disk takes a machine's place and devices."""
        self._world.checks.disturbed.add(old.gateway)
        old.retired = True
        if old.alive:
            old.die()
        new = self._universe.add_machine(disk, old.site)
        for device in old.devices.values():
            device.hub = new
        new.devices, old.devices = old.devices, {}
        return new

    def _plug_in_later(self, old: Machine, bounds: tuple[int, int]) -> None:
        self._revivals[old.name] = old
        self._later(bounds, partial(self._revive, old))

    # --- moved, and back again ----------------------------------------------------------------------------------

    def move(self) -> None:
        """The disk is copied for a new machine while the old one goes on for a while; then they are exchanged.

        Where the database loses just what the old one did meanwhile, the new one writes other frames of the same
        numbers; and somebody plugs the old one in again.
        """
        old = self._victim()
        if old is None or not self._room(old.gateway):
            return
        self._fates.add(old.name)
        self._busy(old)
        self._later(COPY_MS, partial(self._exchange, old, old.disk.copy()))

    def _exchange(self, old: Machine, copy: Disk) -> None:
        self._fates.discard(old.name)
        # The copy has entries of a boot of which only the old one was told the time.
        self._world.checks.untaught(old.disk.taught_boots() - copy.taught_boots())
        new = self._succeed(old, copy)
        old.note(f"is moved to {new.name}, as it was a while ago")
        if self._world.fault_rates.failovers_per_h:
            self._universe.fail_over(self._rng.randint(1, COMMITS_MAX))
        if new.devices:
            self._later((0, BUSY_MS), self._rng.choice(list(new.devices.values())).scan)
        self._plug_in_later(old, SOON_MS)

    def _scrap(self, machine: Machine) -> None:
        lost = set(machine.disk.content())
        self._universe.remove_machine(machine)
        self._universe.shipped |= lost & self._universe.store.places.keys()
        gone = self._world.checks.destroyed(self._universe.store, lost, f"the disk of {machine.name} was thrown away")
        machine.note(f"is scrapped with its disk, {gone} entries of which are nowhere else")

    def _revive(self, machine: Machine) -> None:
        if self._revivals.pop(machine.name, None) is not None:
            machine.note("is plugged in again")
            machine.retired = False
            machine.power_on()
            self._misfortune()

    def end(self) -> None:
        """The storm is over: whoever was to come back comes now."""
        for machine in list(self._revivals.values()):
            self._revive(machine)

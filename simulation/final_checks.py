"""The end of a universe: whether it has settled, and whether everything is where it must be."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from cloud_store.merge.arrivals import LogKey
from edge_agent.ledger import audit, queries, streams
from edge_agent.ledger.sql import statement
from simulation.checks import Checks, Violation
from simulation.edge.machine import Machine
from simulation.store import Store, cursor_of
from wire_protocol.entries import LedgerEntry
from wire_protocol.stock import Cell, EntryKey, Stock, differences, imbalance, oracle
from wire_protocol.topics import STREAMS

_LOGS: Final = "SELECT gateway, epoch, frame, digest FROM log WHERE log > 0"


Machines = Mapping[str, Machine]


def unsettled(machines: Machines, store: Store) -> str | None:
    """What is not yet as it must be in the end; None when everybody agrees."""
    for machine in machines.values():
        if reason := _waits(machine, machines, store):
            return f"{machine.name} {reason}"
    return None


def _waits(machine: Machine, machines: Machines, store: Store) -> str | None:
    if not machine.alive:
        return "is off"
    if waiting := sum(device.firmware.waiting for device in machine.devices.values()):
        return f"has {waiting} events without a receipt"
    return _ships(machine, store) or _hears(machine, machines, store)


def _ships(machine: Machine, store: Store) -> str | None:
    """What the machine has that the cloud has not."""
    connection = machine.disk.connection
    for stream in STREAMS:
        at = streams.position(connection, stream)
        if at.fork is not None:
            return f"is stopped: {at.fork}"
        if streams.waiting(connection, stream, at.source_id):
            return f"has {stream} to seal"
        there = cursor_of(store, LogKey(machine.gateway, stream, machine.ledger.epoch))
        if (at.sealed_frame, at.sealed_frame) != (at.acked_frame, there.frame):
            return f"has sealed {stream} frame {at.sealed_frame}, knows {at.acked_frame} acked, cloud {there.frame}"
    return None


def _hears(machine: Machine, machines: Machines, store: Store) -> str | None:
    """What the cloud has of the site's other logs that the machine has not."""
    rows = machine.disk.connection.execute(_LOGS)
    have = {(name, epoch): (frame, link) for name, epoch, frame, link in rows}
    own = (machine.gateway, machine.ledger.epoch)
    for key in _logs_of_site(machine, machines, store):
        at = store.cursors[key]
        if key[::2] != own and have.pop(key[::2], (0, "")) != (at.frame, at.digest):
            return f"does not have log {key.gateway} {key.epoch[-4:]} as the cloud has it"
    return f"has a log of which the cloud knows nothing: {sorted(have)}" if have else None


def _logs_of_site(machine: Machine, machines: Machines, store: Store) -> list[LogKey]:
    names = {other.gateway for other in machines.values() if other.site == machine.site}
    return [
        key for key, cursor in store.cursors.items() if key.stream == "ledger" and cursor.frame and key.gateway in names
    ]


def finish(checks: Checks, machines: Machines, store: Store) -> None:
    """Everything, once more and in full.

    Raises:
        Violation: something is not as it must be.
    """
    if lost := checks.said.keys() - store.places.keys() - checks.excused.keys():
        raise Violation("I1 nothing lost", f"{len(lost)} happenings are not in the cloud, such as {min(lost)}")
    if made_up := store.places.keys() - checks.said.keys():
        raise Violation("I2 nothing twice", f"nobody has said {min(made_up)}")
    sites: defaultdict[int, list[tuple[EntryKey, LedgerEntry]]] = defaultdict(list)
    names = {machine.gateway: machine.site for machine in machines.values()}
    for key, rows in store.entries.items():
        sites[names[key.gateway]] += [(EntryKey(e.hlc, key.gateway, key.epoch, seq), e) for seq, e in rows]
    for site, entries in sites.items():
        defined = oracle(entries)
        ours = {
            image_store.cell: balance.on_hand
            for image_store, balance in store.balances.items()
            if image_store.site == site
        }
        _require_same(f"the cloud at site {site}", ours, defined.on_hand)
        for machine in machines.values():
            if machine.site == site:
                _finish_machine(machine, {key for key, _ in entries}, defined)
    for machine in machines.values():
        if machine.ledger.epoch in checks.forks[machine.name]:
            raise Violation("no false fork", f"{machine.name} was told to stop and has not opened a new epoch")


def _finish_machine(machine: Machine, keys: set[EntryKey], defined: Stock) -> None:
    connection = machine.disk.connection
    if findings := audit.verify(connection).findings:
        raise Violation("chain whole", f"{machine.name}: {findings[0]}")
    ours = {key for key, _ in queries.entries(connection)}
    if ours != keys:
        less, more = sorted(keys - ours)[:1], sorted(ours - keys)[:1]
        raise Violation(
            "I3 stock is a function",
            f"{machine.name} books {len(ours)} entries, the cloud {len(keys)}: it lacks {less}, it alone has {more}",
        )
    balances = queries.balances(connection)
    if off := imbalance(balances.items()):
        raise Violation("I4 double entry", f"{machine.name} is off by {off}")
    _require_same(machine.name, balances, defined.on_hand)
    logs = {log: (gateway, epoch) for log, gateway, epoch in connection.execute(statement("logs"))}
    counted = connection.execute("SELECT hlc, log, seq, variance FROM movement WHERE kind = 'count'")
    variance = {EntryKey(hlc, *logs[log], seq): found for hlc, log, seq, found in counted}
    if variance != defined.variance:
        wrong = sorted(key for key in variance.keys() | defined.variance if variance.get(key) != defined.variance[key])
        raise Violation("I3 stock is a function", f"{machine.name} has another variance of count {wrong[0]}")


def _require_same(who: str, stored: dict[Cell, int], defined: dict[Cell, int]) -> None:
    for cell, has, should in differences(stored.items(), defined.items()):
        raise Violation("I3 stock is a function", f"{who} {cell}: {has}, oracle {should}")

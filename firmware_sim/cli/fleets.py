"""Running a fleet from the command line: brokers as typed, a line of progress, Ctrl-C.

Invariant: progress goes to a terminal's standard error only, so that the answer on standard output stays clean.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from firmware_sim.errors import BadInput, SimError, first_of
from firmware_sim.fleet.link import LinkOptions
from wire_protocol.address import BrokerAddress

if TYPE_CHECKING:
    from firmware_sim.fleet.fleet import Fleet, Report

PROGRESS_S: Final = 0.5
BOOT_MAX: Final = 1 << 48


def brokers(given: Sequence[str]) -> tuple[dict[str, BrokerAddress], BrokerAddress | None]:
    """`NAME=URL` by name, and the one without a name.

    Raises:
        BadInput: one is not an address, or there are two of a kind.
    """
    named: dict[str, BrokerAddress] = {}
    default: BrokerAddress | None = None
    for text in given:
        name, is_named, url = text.partition("=")
        if not is_named or "/" in name:  # a password may have a `=` in it
            if default is not None:
                raise BadInput("There are two brokers without a name.", hint="Give NAME=mqtt://HOST for each gateway.")
            default = BrokerAddress.parse(text)
        elif name in named:
            raise BadInput(f"There are two brokers for {name}.")
        else:
            named[name] = BrokerAddress.parse(url)
    return named, default


def brokers_of(gateways: Sequence[str], given: Sequence[str], *, option: str = "--broker") -> dict[str, BrokerAddress]:
    """The broker of each gateway.

    Raises:
        BadInput: one has none, or there is one for a gateway that is not in it.
    """
    named, default = brokers(given)
    if unknown := sorted(named.keys() - set(gateways)):
        raise BadInput(f"There is no {unknown[0]} in it.", hint=f"There is: {', '.join(gateways)}")
    found = {gateway: named.get(gateway, default) for gateway in gateways}
    if lacking := [gateway for gateway, broker in found.items() if broker is None]:
        raise BadInput(
            f"Which broker serves {lacking[0]}?",
            hint=f"Give --broker mqtt://HOST for all, or {option} {lacking[0]}=mqtt://HOST.",
        )
    return {gateway: broker for gateway, broker in found.items() if broker is not None}


def link_options(mqtt_version: str) -> LinkOptions:
    """How devices connect.

    Raises:
        BadInput: there is no such version.
    """
    if mqtt_version == "5":
        return LinkOptions(mqtt_version="5")
    if mqtt_version == "3.1.1":
        return LinkOptions(mqtt_version="3.1.1")
    raise BadInput(f"{mqtt_version!r} is not an MQTT version.", hint="5 or 3.1.1")


def boot_counter(text: str | None, now_s: Callable[[], float] = time.time) -> int:
    """The boot counter as typed; by default the time in seconds, which is larger at each start of a device.

    Raises:
        BadInput: it is not a hexadecimal number.
    """
    if text is None:
        return int(now_s())
    try:
        boot = int(text, 16)
    except ValueError:
        boot = -1
    if not 0 <= boot < BOOT_MAX:
        raise BadInput(f"{text!r} is not a boot counter.", hint="A hexadecimal number of up to 12 digits.")
    return boot


def run(fleet: "Fleet", *, events_total: int | None, quiet: bool) -> "Report":
    """Run a fleet to its end, with a line of progress on a terminal."""
    return asyncio.run(_run(fleet, events_total, shown=not quiet and sys.stderr.isatty()))


async def _run(fleet: "Fleet", events_total: int | None, *, shown: bool) -> "Report":
    if not shown:
        return await fleet.run()
    try:
        async with asyncio.TaskGroup() as tasks:
            progress = tasks.create_task(_progress(fleet, events_total), name="sim.progress")
            report = await fleet.run()
            progress.cancel()
    except* SimError as errors:
        raise first_of(errors) from None
    return report


async def _progress(fleet: "Fleet", events_total: int | None) -> None:
    try:
        while True:
            await asyncio.sleep(PROGRESS_S)
            sys.stderr.write(f"\r\x1b[K{progress_line(fleet, events_total)}")
            sys.stderr.flush()
    finally:
        sys.stderr.write("\r\x1b[K")


def progress_line(fleet: "Fleet", events_total: int | None) -> str:
    """One line: the simulated time, what was published and what has a receipt."""
    shot = fleet.snapshot()
    at = time.strftime("%Y-%m-%d %H:%M", time.gmtime(shot.at_ms / 1_000))
    published = shot.events + shot.readings
    of = f"/{events_total}" if events_total is not None else ""
    problem = next((f"  {device.gateway}: {device.problem}" for device in shot.devices if device.problem), "")
    counts = f"published {published}{of}  receipts {shot.receipts}  waiting {shot.waiting}  resent {shot.resent}"
    return f"{at}  {counts}{problem}"


def shared(of: Mapping[str, BrokerAddress]) -> set[str]:
    """The gateways' names that share a broker with another, where a device's name alone would be ambiguous."""
    places = [(broker.host, broker.port) for broker in of.values()]
    return {name for name, broker in of.items() if places.count((broker.host, broker.port)) > 1}


def refuse_shared(of: Mapping[str, BrokerAddress], devices: Mapping[str, Sequence[str]]) -> None:
    """Refuse gateways on one broker whose devices have the same name there.

    Raises:
        BadInput: they would be one device.
    """
    seen: dict[tuple[str, int, str], str] = {}
    for gateway, broker in of.items():
        for device in devices[gateway]:
            other = seen.setdefault((broker.host, broker.port, device), gateway)
            if other != gateway:
                raise BadInput(
                    f"Both {other} and {gateway} have a device {device}.", hint="Give each gateway its own broker."
                )

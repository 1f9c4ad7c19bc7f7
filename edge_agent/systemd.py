"""Readiness and watchdog messages to systemd: sd_notify(3), one datagram to $NOTIFY_SOCKET."""

import asyncio
import os
import socket


def notify(*assignments: str) -> bool:
    """Tell systemd about a change of state, e.g. `READY=1`; False when it did not start us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # the abstract namespace of unix(7)
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto("\n".join(assignments).encode(), address)
    return True


async def keep_watchdog(interval_s: float | None) -> None:
    """Tell the watchdog that the event loop turns, until cancelled; ends at once when there is no watchdog."""
    while interval_s is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)

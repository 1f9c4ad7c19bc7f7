"""Readiness and watchdog messages to systemd: sd_notify(3), one datagram to $NOTIFY_SOCKET.

Invariant: who listens there, or whether anybody does, is no reason to end or to wait.
"""

import asyncio
import os
import socket
from typing import Final

import structlog

SEND_S_MAX: Final = 0.5

log = structlog.get_logger("edge_agent.systemd")


def notify(*assignments: str) -> bool:
    """Tell systemd about a change of state, e.g. `READY=1`; False when it did not start us, or does not listen."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # the abstract namespace of unix(7)
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(SEND_S_MAX)
        try:
            channel.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            log.warning("systemd_not_notified", said=assignments[0], reason=str(error))
            return False
    return True


async def keep_watchdog(interval_s: float | None) -> None:
    """Tell the watchdog that the event loop turns, until cancelled; ends at once when there is no watchdog."""
    while interval_s is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)

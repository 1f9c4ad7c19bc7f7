"""What happens in the agent, by name: parts send signals and connect to them instead of knowing each other.

A signal may be sent in any thread: the ledger's writer has one, the gateway's broker has one, the link to the cloud is
in the event loop's. A receiver is called in the sender's thread, or soon in the loop's, as it was connected.

Invariant: a receiver that fails stops neither the sender nor the other receivers.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, ParamSpec

import structlog

from edge_agent.ledger.writer import Append
from edge_agent.provisioning.twin import Configured
from wire_protocol.firmware import FirmwareRequest

P = ParamSpec("P")

log = structlog.get_logger("edge_agent.signals")


class Signal(Generic[P]):
    """Something that happens, with the arguments that say what."""

    def __init__(self) -> None:
        self._receivers: list[Callable[P, object]] = []

    def connect(self, receiver: Callable[P, object]) -> None:
        """Call a receiver in the sender's thread, after those that are connected already."""
        self._receivers.append(receiver)

    def connect_in(self, loop: asyncio.AbstractEventLoop, receiver: Callable[P, object]) -> None:
        """Call a receiver in the thread of an event loop, soon; not at all when the loop has ended."""

        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            with suppress(RuntimeError):  # the loop has ended, and what it would do with it
                loop.call_soon_threadsafe(partial(receiver, *args, **kwargs))

        self._receivers.append(call)

    def send(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """It has happened: call the receivers."""
        for receiver in self._receivers:
            try:
                receiver(*args, **kwargs)
            except Exception:
                log.exception("signal_receiver_failed", receiver=getattr(receiver, "__qualname__", repr(receiver)))


@dataclass(slots=True)
class Signals:
    """Everything that parts of the agent let each other know, and in which thread it is sent."""

    ledger_committed: Signal[[Sequence[Append]]] = field(default_factory=Signal)
    """Device events were committed, or what another job wrote (none): the writer's thread."""

    intake_refusing: Signal[[str | None]] = field(default_factory=Signal)
    """The disk is full, with a reason, or has room again (None): the writer's thread."""

    device_reported: Signal[[]] = field(default_factory=Signal)
    """What a device reports of itself was committed: the writer's thread."""

    model_reported: Signal[[str]] = field(default_factory=Signal)
    """A device has reported which model it is: the writer's thread."""

    firmware_requested: Signal[[str, FirmwareRequest]] = field(default_factory=Signal)
    """A device requests a piece of an image: the local broker's thread."""

    twin_applied: Signal[[Sequence[Configured]]] = field(default_factory=Signal)
    """Another twin is in force; with the configurations for its devices: the loop's thread."""

    firmware_changed: Signal[[]] = field(default_factory=Signal)
    """Devices may be offered other firmware than before: the loop's thread."""

    sync_requested: Signal[[]] = field(default_factory=Signal)
    """The cloud wants everything reported and fetched now: the loop's thread."""

    epoch_requested: Signal[[]] = field(default_factory=Signal)
    """The ledger has noted that it is to go on in a new epoch: the loop's thread."""

    locate_requested: Signal[[str, int]] = field(default_factory=Signal)
    """A device is to blink, for a number of seconds: the loop's thread."""

    log_level_requested: Signal[[str, int]] = field(default_factory=Signal)
    """Another log level, for a number of minutes: the loop's thread."""

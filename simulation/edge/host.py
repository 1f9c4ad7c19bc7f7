"""A machine as its own uplink sees it: the agent around it, and the world outside."""

from collections.abc import Callable
from typing import Any, Protocol

from edge_agent.settings import EdgeSettings
from simulation.checks import MachineView
from simulation.edge.clocks import VirtualClock
from simulation.edge.tasks import Run
from simulation.network import Network
from simulation.world import World


class Host(MachineView, Protocol):
    """What an uplink needs of its machine; `edge.machine.Machine` is one."""

    world: World
    network: Network
    clock: VirtualClock
    settings: EdgeSettings

    def note(self, what: str) -> None:
        """A line of the trace."""

    def later(self, delay_ms: float, step: Callable[[], None]) -> None:
        """Run a step later, if this life lasts that long."""

    def guarded(self, step: Callable[[], None]) -> None:
        """Run a step that may be this life's last."""

    def crash_point(self, where: str) -> None:
        """Perhaps the power is cut here."""

    def submit(self, run: Run, done: Callable[[Any], None], full: Callable[[], None]) -> None:
        """Queue a write."""

    def writes_wait(self) -> bool:
        """Whether writes other than events are queued."""

"""The network and the brokers in it: every message is late, and may be lost, doubled, reordered or damaged.

A broker here keeps nothing: when it is wiped, whatever was on its way is gone with every session.

Damage is what a receiver can notice: cut short, or a flipped bit in a payload with a checksum. docs/simulation.md says
why a flipped bit in plain JSON is left out.
"""

from collections.abc import Callable
from typing import Final

from simulation.world import World

LATENCY_MS: Final = (5, 60)
LATE_MS_MAX: Final = 8_000
DAYS_LATE_MS_MAX: Final = 2 * 86_400_000
DOWN_LATE_MS_MAX: Final = 2 * 3_600_000  # a broker keeps nothing for a session that has ended
DAYS_LATE_SHARE: Final = 0.05  # of the reordered messages
PLAIN: Final = b"{"

Deliver = Callable[[bytes], None]


class Network:
    """Carries payloads along named paths; on each, order is kept unless a fault reorders it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.chance = world.rng("network")
        self._last_at_ms: dict[str, int] = {}
        self.cut: set[str] = set()
        self.era = 0
        self.carried = self.lost = 0

    def send(self, path: str, payload: bytes, deliver: Deliver, *, over: str | None = None) -> None:
        """Send a payload on its way.

        Args:
            path: messages on one path keep their order without a fault.
            payload: what is sent.
            deliver: called with what arrives, if it arrives.
            over: the machine whose link to the cloud's broker this takes; None for a gateway's own broker.
        """
        fault_rates = self._world.fault_rates
        self.carried += 1
        if over in self.cut or self._happens(fault_rates.drop):
            self.lost += 1
            return
        copies = 2 if self._happens(fault_rates.duplicate) else 1
        for _ in range(copies):
            damaged = self.damage(payload) if self._happens(fault_rates.corrupt) else payload
            self._carry(path, damaged, deliver, over)

    def wipe(self) -> None:
        """The cloud's broker restarts empty."""
        self.era += 1

    def _carry(self, path: str, payload: bytes, deliver: Deliver, over: str | None) -> None:
        world, era = self._world, self.era
        at_ms = world.now_ms + self.chance.randint(*LATENCY_MS)
        if self._happens(world.fault_rates.reorder):
            longest = self.days_late_ms(path) if self._happens(DAYS_LATE_SHARE) else LATE_MS_MAX
            at_ms += self.chance.randint(0, longest)
        else:
            at_ms = self._last_at_ms[path] = max(at_ms, self._last_at_ms.get(path, 0))

        def arrive() -> None:
            # A message that is days late was kept by a broker on the way, so the link's state at sending counts.
            if over is not None and (over in self.cut or self.era != era):
                self.lost += 1
            else:
                deliver(payload)

        world.schedule.after(at_ms - world.now_ms, arrive)

    @staticmethod
    def days_late_ms(path: str) -> int:
        """How late the latest messages of a path are."""
        return DOWN_LATE_MS_MAX if path.endswith(".cloud") else DAYS_LATE_MS_MAX

    def damage(self, payload: bytes) -> bytes:
        """Damage a payload so that its receiver can notice."""
        head, line_feed, frame = payload.partition(b"\n")  # a frame that is passed down stands behind a line of JSON
        begin = 0 if payload[:1] != PLAIN else len(head) + 1 if line_feed and frame[:1] != PLAIN else len(payload)
        at = self.chance.randrange(len(payload))
        return self.flip(payload, at) if at > begin else payload[:at]

    def flip(self, payload: bytes, at: int) -> bytes:
        """One bit of one byte is wrong."""
        return payload[:at] + bytes([payload[at] ^ 1 << self.chance.randrange(8)]) + payload[at + 1 :]

    def _happens(self, chance: float) -> bool:
        return chance > 0 and self.chance.random() < chance

"""The bounds of what goes down to a fleet at once."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.services.twins import Twins
from cloud_ingest.settings import IngestSettings
from cloud_ingest.token_bucket import TURNS_PER_S, Allowance
from cloud_store.provisioning.twins import Push
from testbed.reported_twins import reported_twin
from testbed.turned_loop import now_s, pass_time, turned
from wire_protocol.twin import DesiredState, DesiredTwin, ReportedTwin

RATE = 40


@dataclass
class Fleet:
    """A store of a fleet whose twins have all just been changed."""

    due_now: list[Push]
    reports: list[str] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def due(self, shards: Iterable[int], *, limit: int, again_s: float) -> list[Push]:
        """Part of `TwinStore`."""
        del shards, again_s
        self.asked.append(limit)
        return self.due_now[:limit]

    def pushed(self, pushes: Sequence[Push]) -> None:
        """Part of `TwinStore`."""
        self.due_now = self.due_now[len(pushes) :]

    def report(self, gateway: str, reported: ReportedTwin) -> None:
        """Part of `TwinStore`."""
        del reported
        self.reports.append(gateway)


@pytest.mark.bound("cloud.twins_per_s_max")
@turned
async def test_a_change_of_the_whole_fleet_is_spread_over_time() -> None:
    """Ten thousand gateways that answer at once would be a herd of our own making; who reports meanwhile is heard."""
    document = DesiredTwin(version=1, state=DesiredState())
    fleet = Fleet([Push(f"gw-{number}", document) for number in range(2 * RATE)])
    at_s: list[float] = []

    def publish(topic: str, payload: bytes, *, retain: bool) -> None:
        del topic, payload
        assert retain
        at_s.append(now_s())

    settings = IngestSettings.model_construct(twins_per_s_max=RATE, status_waiting_max=100)
    twins = Twins(settings, cast("Any", fleet), publish, WorkerMetrics())
    twins._allowance, twins._answers = Allowance(RATE, now_s), Allowance(RATE, now_s)
    running = asyncio.create_task(twins.run())
    twins.serve(frozenset(range(64)))
    reporting = 0
    while len(at_s) < 2 * RATE:
        await pass_time(0.01)
        # Whoever was told reports at once, and that must not let the next ones through.
        reporting += 1
        twins.reported(f"gw-{reporting}", reported_twin(1).encode())
    running.cancel()
    await asyncio.wait([running])
    assert at_s[-1] - at_s[0] > 2 - 3 / TURNS_PER_S
    assert max(fleet.asked) == RATE // TURNS_PER_S
    assert len(fleet.reports) >= reporting - 5

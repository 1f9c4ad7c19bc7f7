"""The bounds of what goes down to a fleet at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from cloud_ingest.inbound import Inbound
from cloud_ingest.services.twins import Twins
from cloud_ingest.token_bucket import TURNS_PER_S
from cloud_store.base.rows import ReadRows
from cloud_store.provisioning import twins
from cloud_store.provisioning.twins import Push
from testbed.reported_twins import reported_twin
from testbed.store import context, running
from testbed.turned_loop import now_s, pass_time, turned
from wire_protocol import topics
from wire_protocol.topics import Channel
from wire_protocol.twin import DesiredState, DesiredTwin, ReportedTwin

RATE = 40


@dataclass
class Fleet:
    """A store of a fleet whose twins have all just been changed."""

    due_now: list[Push]
    reports: list[str] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def due(self, shards: Iterable[int], *, limit: int, again_s: float) -> ReadRows[Push]:
        """As `cloud_store.provisioning.twins`."""
        del shards, again_s
        self.asked.append(limit)
        return ReadRows(self.due_now[:limit], [])

    def pushed(self, pushes: Sequence[Push]) -> None:
        """As `cloud_store.provisioning.twins`."""
        self.due_now = self.due_now[len(pushes) :]

    def report(self, gateway: str, reported: ReportedTwin) -> None:
        """As `cloud_store.provisioning.twins`."""
        del reported
        self.reports.append(gateway)


@pytest.mark.bound("cloud.twins_per_s_max")
@pytest.mark.bound("cloud.reports_waiting_max")
@turned
async def test_a_change_of_the_whole_fleet_is_spread_over_time() -> None:
    """Ten thousand gateways that answer at once would be a herd of our own making; who reports meanwhile is heard."""
    document = DesiredTwin(version=1, state=DesiredState())
    fleet = Fleet([Push(f"gw-{number}", document) for number in range(2 * RATE)])
    at_s: list[float] = []

    def publish(topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        del topic, payload, qos
        assert retain
        at_s.append(now_s())

    answers = {twins.due: fleet.due, twins.pushed: fleet.pushed, twins.report: fleet.report}
    service = Twins(context(answers, publish, now_s, twins_per_s_max=RATE, reports_waiting_max=100))
    service.serve(frozenset(range(64)))
    reporting = 0
    async with running(service.loops()):
        while len(at_s) < 2 * RATE:
            await pass_time(0.01)
            # A gateway that got one reports at once, and that must not let the next ones through.
            reporting += 1
            name = f"gw-{reporting}"
            report = reported_twin(1).encode()
            service.reported(Inbound(name, Channel.REPORTED_TWIN, topics.link(name, Channel.REPORTED_TWIN), report, 0))
        await pass_time(1)
    assert len(fleet.reports) == reporting
    assert at_s[-1] - at_s[0] > 2 - 3 / TURNS_PER_S
    assert max(fleet.asked) == RATE // TURNS_PER_S

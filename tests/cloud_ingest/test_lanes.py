"""Several merges at a time: broken when one site's frames hold up another's, or a site is in two merges at once."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from cloud_ingest.merge.inbox import Inbox
from cloud_ingest.merge.lanes import MergeLanes
from cloud_ingest.merge.loop import MergeLoop
from cloud_store.base import gateways
from cloud_store.base.connection import answers
from cloud_store.base.errors import DatabaseUnavailable
from cloud_store.base.gateways import Gateway
from cloud_store.merge.arrivals import ArrivedFrame, MergeReport
from testbed.store import context, running
from testbed.turned_loop import now_s, pass_time, turned
from tests.cloud_ingest.test_logic import AckCollector, MemoryStore, arrival, sealed
from tests.cloud_ingest.test_slow_lane import acked

SITES: Mapping[str, int] = {"gw-a": 1, "gw-b": 2, "gw-c": 1}


@dataclass
class LaneStore(MemoryStore):
    """A store in memory whose merges take a second for each site's frames; it sees which sites are merged at once."""

    seconds: Mapping[int, float] = field(default_factory=dict)
    merging: list[int] = field(default_factory=list)
    together: list[list[int]] = field(default_factory=list)

    async def merge(self, frames: Sequence[ArrivedFrame]) -> MergeReport:
        """In any lane."""
        sites = {SITES.get(arrived.gateway, 0) for arrived in frames}
        self.merging += sites
        self.together.append(sorted(self.merging))
        await asyncio.sleep(max(self.seconds.get(site, 0.0) for site in sites))
        for site in sites:
            self.merging.remove(site)
        return await super().merge(frames)


def registry(names: Collection[str]) -> Mapping[str, Gateway]:
    """What the registry says."""
    return {name: Gateway(number, name, 1, SITES[name], True) for number, name in enumerate(names) if name in SITES}


def two_lanes(store: LaneStore, link: AckCollector, frames_max: int = 4) -> MergeLoop:
    """A loop with two lanes on one store in memory."""
    stands = context(
        {answers: lambda: None, gateways.named: registry},
        link.publish,
        now_s,
        batch_delay_ms=0,
        batch_frames_max=frames_max,
    )
    inbox = Inbox(frames_max=1_000, bytes_max=1 << 20)
    return MergeLoop(stands, inbox=inbox, merge_frames=store.merge, more_lanes=[store.merge])


@turned
async def test_a_slow_site_waits_for_itself() -> None:
    """Another site's frames go on, even when the slow one's fill its lane and wait in the inbox."""
    store, link = LaneStore(seconds={1: 60.0}), AckCollector()
    merging = two_lanes(store, link)
    async with running([merging.run()]):
        for payload in sealed("gw-a", 40):
            merging.offer(arrival(payload, "gw-a"))
        await pass_time(1)
        for number, payload in enumerate(sealed("gw-b", 20), 1):
            merging.offer(arrival(payload, "gw-b"))
            await pass_time(0.1)
            assert acked(link, "gw-b") == number, "it waited for another site"
        assert acked(link, "gw-a") == 0
        await pass_time(15 * 60)
        assert acked(link, "gw-a") == 40


@turned
async def test_a_site_is_in_one_merge_at_a_time() -> None:
    """Two merges of one site would wait for each other's locks, and one gateway's frames would overtake each other."""
    store, link = LaneStore(seconds={1: 0.3, 2: 0.2}), AckCollector()
    merging = two_lanes(store, link)
    frames = {name: sealed(name, 30) for name in SITES}
    async with running([merging.run()]):
        for number in range(30):
            for name, payloads in frames.items():
                merging.offer(arrival(payloads[number], name))
            await pass_time(0.05)
        await pass_time(30)
        assert [acked(link, name) for name in SITES] == [30, 30, 30]
    assert [1, 2] in store.together, "both lanes work at once"
    assert all(len(set(sites)) == len(sites) for sites in store.together)


@turned
async def test_who_is_not_registered_waits_in_the_first_lane() -> None:
    """There it is refused, as the merge refuses it."""
    store, link = LaneStore(), AckCollector()
    merging = two_lanes(store, link)
    async with running([merging.run()]):
        merging.offer(arrival(sealed("gw-x", 1)[0], "gw-x"))
        await pass_time(1)
        assert store.together == [[0]]
        assert not merging.offer(arrival(sealed("gw-x", 1)[0], "gw-x")), "it is not listened to for a while"


@pytest.mark.bound("cloud.merge_lanes")
async def test_lanes_need_no_database_to_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is away, or never asked: what is known stays known, and what is remembered is bounded."""
    monkeypatch.setattr("cloud_ingest.merge.lanes.GATEWAYS_REMEMBERED_MAX", 2)
    asked: list[set[str]] = []
    away = False

    async def find(names: Collection[str]) -> Mapping[str, Gateway]:
        asked.append(set(names))
        if away:
            raise DatabaseUnavailable
        return {name: Gateway(1, name, 1, int(name[-1]), True) for name in names}

    async def merge(frames: Sequence[ArrivedFrame]) -> MergeReport:
        raise AssertionError(frames)

    def frame(name: str) -> ArrivedFrame:
        return ArrivedFrame.read(name, "ledger", sealed(name, 1)[0], 0)

    lanes = MergeLanes([merge, merge], 10, find)
    await lanes.add([frame("gw-1"), frame("gw-2")])
    assert [len(lane) for lane in lanes] == [1, 1]
    away = True
    await lanes.add([frame("gw-1"), frame("gw-3")])
    assert [len(lane) for lane in lanes] == [2, 2]
    away = False
    await lanes.add([frame("gw-3")])
    assert [len(lane) for lane in lanes] == [2, 3]
    assert asked == [{"gw-1", "gw-2"}, {"gw-3"}, {"gw-3"}]
    assert len(lanes._sites) <= 2

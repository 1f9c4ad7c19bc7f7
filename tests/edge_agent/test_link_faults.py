"""The uplink over a link that is cut, half-open and slow, again and again: it comes back, and nothing is lost."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.desk.booking import book
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.ledger import Ledger
from firmware_sim.faults.proxy import FaultProxy
from testbed.agent_process import AgentProcess
from testbed.loopback_cloud import LoopbackCloud
from testbed.services import PrivateBroker
from wire_protocol.messages import Ack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


async def test_a_link_that_is_cut_and_half_open_again_and_again(
    path: Path,
    agents: Callable[..., AgentProcess],
    private_broker: Callable[..., PrivateBroker],
    unique_name: Callable[..., str],
) -> None:
    """A lost reconnect would leave a gateway alone forever, with nobody on site to notice."""
    broker, gateway = private_broker(), unique_name()
    async with FaultProxy("127.0.0.1", broker.port) as proxy:
        url = f"mqtt://127.0.0.1:{proxy.port}"
        with Ledger.create(path, gateway, SystemClock(), local_url="mqtt://127.0.0.1:9", cloud_url=url):
            pass
        with LoopbackCloud(broker.port, gateway) as cloud:
            agent = agents(
                path,
                STOCKTIDE_EDGE_KEEPALIVE_S="5",
                STOCKTIDE_EDGE_RESEND_DELAY_MS="300",
                STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX="0.5",
            )
            await asyncio.to_thread(agent.start, "uplink_up")
            for number, fault in enumerate([proxy.cut, proxy.cut, proxy.blackhole, proxy.cut, proxy.cut, proxy.cut]):
                await asyncio.to_thread(_book_many, path, 40)
                fault()
                await asyncio.to_thread(_book_many, path, 40)
                proxy.heal()
                expected = 80 * (number + 1)
                await asyncio.to_thread(
                    cloud.wait_for,
                    lambda least=expected: len(cloud.entries["ledger"]) == least,  # type: ignore[misc]
                )
            proxy.delay_s = 0.2
            await asyncio.to_thread(_book_many, path, 20)
            await asyncio.to_thread(cloud.wait_for, lambda: len(cloud.entries["ledger"]) == 500)
            hlcs = [entry.hlc for entry in cloud.entries["ledger"]]
            assert hlcs == sorted(set(hlcs))
            assert await asyncio.to_thread(agent.stop) == 0


def _book_many(path: Path, count: int) -> None:
    for _ in range(count):
        book(path, "receive", "tea", 1, destination="A-01")


def test_an_acknowledgement_for_a_gateway_without_history_is_understood() -> None:
    """The first answer a new gateway gets has no epoch; refusing it would cost it its first question."""
    ack = Ack(stream="ledger", epoch=None, frame=0, seq=0, now_ms=1, window=16, want=1)
    assert Ack.decode(ack.encode()) == ack

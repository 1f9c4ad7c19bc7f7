"""The claim's one question under a cancellation: Ctrl-C at `enroll` must not become one more attempt."""

import asyncio

import pytest

from edge_agent.identity import claim_client
from edge_agent.identity.claim_client import NoAnswer, NotConnected, ask
from mqtt_client import ConnectionLost
from tests.mqtt_client.every_step import When, cancelled_at_each_step
from tests.mqtt_client.scripted_broker import ScriptedBroker
from wire_protocol.address import BrokerAddress
from wire_protocol.messages import ClaimRequest

REQUEST = ClaimRequest(gateway=None, secret="s" * 24, csr_pem="csr", nonce="0123456789abcdef")


@pytest.mark.parametrize("when", When, ids=lambda when: when.value)
async def test_a_cancellation_ends_it_though_the_broker_hangs_up(when: When, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker's error hid the cancellation: the next attempt began, or the command said that nobody had answered."""
    monkeypatch.setattr(claim_client, "ASK_AGAIN_S", 0.0)

    async def hook(stage: str) -> bool:
        if stage == "publish answered":
            broker.hang_up()
        return True

    async with ScriptedBroker(hook) as broker:

        async def asking() -> None:
            with pytest.raises((NoAnswer, NotConnected)):
                await ask(BrokerAddress("127.0.0.1", broker.port), "claim", REQUEST, None, wait_s=30.0)

        assert await cancelled_at_each_step(asking, when, is_clean=lambda: broker.open == 0, steps_max=60) >= 5


async def test_a_task_group_that_fails_while_it_ends_leaves_nobody_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is there and the request fails just then: before Python 3.13 its caller passed for cancelled."""
    ended = asyncio.Event()

    async def failing(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise ConnectionLost("Broken pipe") from None

    async def answered(*_: object) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(claim_client, "_repeat", failing)
    monkeypatch.setattr(claim_client, "_answer", answered)
    async with ScriptedBroker() as broker:
        with pytest.raises(NoAnswer):
            await ask(BrokerAddress("127.0.0.1", broker.port), "claim", REQUEST, None, wait_s=30.0)
    assert ended.is_set()
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_an_attempt_that_ends_by_itself_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation that its caller has not asked for would end the command without a word."""

    async def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(claim_client, "_answer", cancelled)
    async with ScriptedBroker() as broker:
        with pytest.raises(NoAnswer, match="by itself"):
            await ask(BrokerAddress("127.0.0.1", broker.port), "claim", REQUEST, None, wait_s=30.0)

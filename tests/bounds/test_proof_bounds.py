"""The bounds of stock proof: so many gateways wait, so long is one waited for, and no answer wedges the worker."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from cloud_ingest.services.stock_checks import StockChecks
from cloud_store.reports import stock_checks
from cloud_store.reports.stock_checks import Comparison, SiteSnapshot
from testbed.store import context, running
from testbed.turned_loop import pass_time, turned
from wire_protocol import proof
from wire_protocol.messages import Command, Reply
from wire_protocol.proof import DigestQuestion, StockDigest
from wire_protocol.stock import Cell

HELD = [(Cell("A-1", f"SKU-{n}", ""), n + 1) for n in range(200)]
THEIRS = [(cell, on_hand + (cell.sku == "SKU-7")) for cell, on_hand in HELD]
PROOF = StockDigest.of(THEIRS, 5)
SETTINGS: dict[str, Any] = {"proofs_waiting_max": 10, "proof_answer_s_max": 0.3, "proof_scan_s": 600.0}


@dataclass
class Bench:
    """Stock checks on a stock that differs from every gateway's, and the commands they publish."""

    now_s: float = 0.0
    commands: list[Command] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    differing: list[tuple[str, list[tuple[Cell, int, int]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        answers = {
            stock_checks.compare: self._compare,
            stock_checks.snapshot: lambda _gateway: SiteSnapshot(HELD, 5, 0),
            stock_checks.differ: self._differ,
        }
        stands = replace(context(answers, self._published, **SETTINGS), mono_s=lambda: self.now_s)
        self.checks = StockChecks(stands)

    def _compare(self, gateway: str, _theirs: StockDigest, *, scan_s: float) -> Comparison:
        del scan_s
        self.compared.append(gateway)
        return Comparison(comparable=True, agrees=False, intact=True)

    def _differ(self, gateway: str, differences: Iterable[tuple[Cell, int, int]], *, complete: bool) -> None:
        assert complete
        self.differing.append((gateway, list(differences)))

    def _published(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        del topic, qos, retain
        self.commands.append(Command.decode(payload))

    def reply(self, gateway: str, reply: Reply) -> bool:
        """A gateway replies."""
        return self.checks.replied(gateway, reply, len(reply.encode()))

    async def until(self, wanted: int) -> None:
        """Work until nothing waits and so many commands were published."""

        def done() -> bool:
            return len(self.commands) >= wanted and not self.checks._proofs and not self.checks._replies

        async with running(self.checks.loops()):
            await pass_time(1)
        assert done()


def answer(command: Command) -> Reply:
    """What an honest gateway replies."""
    question = DigestQuestion(prefixes=tuple(str(command.arguments["prefixes"]).split(",")))
    result = proof.answer(question, THEIRS, 5).model_dump(mode="json")
    return Reply(id=command.id, ok=True, result=result)


@pytest.mark.bound("cloud.proofs_waiting_max")
@turned
async def test_more_gateways_than_may_wait_are_compared_with_their_next_status() -> None:
    """A fleet that comes back at once must not fill the worker's memory with its digests."""
    bench = Bench()
    for number in range(25):
        bench.checks.reported(f"gw-{number}", PROOF)
    await bench.until(10)
    assert bench.compared == [f"gw-{number}" for number in range(10)]


@pytest.mark.bound("cloud.proof_answer_s_max")
@turned
async def test_a_gateway_that_does_not_answer_is_dropped_and_asked_again_later() -> None:
    """Silence must neither block the others nor keep this one from being compared forever."""
    bench = Bench()
    bench.checks.reported("gw-1", PROOF)
    await bench.until(1)
    bench.checks.reported("gw-1", PROOF)
    await bench.until(1)
    assert len(bench.commands) == 1, "it was still waited for"
    bench.now_s += SETTINGS["proof_answer_s_max"] + 0.1
    bench.checks.reported("gw-1", PROOF)
    await bench.until(2)
    assert len(bench.commands) == 2
    bench.reply("gw-1", answer(bench.commands[0]))
    assert not bench.reply("gw-1", Reply(id="c-1", ok=True)), "an operator's command is nobody's here"
    bench.reply("gw-1", answer(bench.commands[1]))
    await bench.until(3)
    bench.reply("gw-1", answer(bench.commands[2]))
    await bench.until(3)
    assert bench.differing == [("gw-1", [(Cell("A-1", "SKU-7", ""), 8, 9)])]


@turned
async def test_an_answer_that_makes_no_sense_ends_the_search() -> None:
    """A gateway of another version, or a hostile one."""
    bench = Bench()
    bench.checks.reported("gw-1", PROOF)
    await bench.until(1)
    lie = {"position": "zz", "buckets": 3}
    bench.reply("gw-1", Reply(id=bench.commands[0].id, ok=True, result=lie))
    await bench.until(1)
    bench.checks.reported("gw-1", PROOF)
    await bench.until(2)
    assert bench.differing == []

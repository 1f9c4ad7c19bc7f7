"""The bounds of stock proof: so many gateways wait, so long is one waited for, and no answer wedges the worker."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import pytest

from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.services.stock_checks import Proofs
from cloud_ingest.settings import IngestSettings
from cloud_store.reports.stock_checks import Comparison, ProofStore, Snapshot
from testbed.hand_clock import HandClock
from testbed.turned_loop import pass_time, turned
from wire_protocol import proof
from wire_protocol.messages import Command, Reply
from wire_protocol.proof import ProofQuestion, StockProof
from wire_protocol.stock import Cell

HELD = [(Cell("A-1", f"SKU-{n}", ""), n + 1) for n in range(200)]
THEIRS = [(cell, on_hand + (cell.sku == "SKU-7")) for cell, on_hand in HELD]
PROOF = StockProof.of(THEIRS, 5)
SETTINGS = IngestSettings.model_construct(proofs_waiting_max=10, proof_answer_s_max=30.0, proof_scan_s=600.0)


@dataclass
class Shelf:
    """A store that knows one stock, which differs from every gateway's."""

    compared: list[str] = field(default_factory=list)
    differing: list[tuple[str, list[tuple[Cell, int, int]]]] = field(default_factory=list)

    def compare(self, gateway: str, theirs: StockProof, *, scan_s: float) -> Comparison:
        """Part of `ProofStore`."""
        del theirs, scan_s
        self.compared.append(gateway)
        return Comparison(comparable=True, agrees=False, intact=True)

    def snapshot(self, gateway: str) -> Snapshot:
        """Part of `ProofStore`."""
        del gateway
        return Snapshot(HELD, 5, 0)

    def differ(self, gateway: str, differences: Iterable[tuple[Cell, int, int]], *, complete: bool) -> None:
        """Part of `ProofStore`."""
        assert complete
        self.differing.append((gateway, list(differences)))


@dataclass
class Bench:
    """Proofs on a shelf, and the commands they publish."""

    store: Shelf = field(default_factory=Shelf)
    commands: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        store = cast("ProofStore", self.store)
        self.proofs = Proofs(SETTINGS, store, lambda _, payload: self._asked(payload), WorkerMetrics())

    def _asked(self, payload: bytes) -> None:
        self.commands.append(Command.decode(payload))

    async def work(self) -> None:
        """Work until nothing is left to do."""
        running = asyncio.create_task(self.proofs.run(), name="proofs")
        await pass_time(1)
        running.cancel()
        await asyncio.wait([running])


def answer(command: Command) -> Reply:
    """What an honest gateway replies."""
    question = ProofQuestion(prefixes=tuple(str(command.arguments["prefixes"]).split(",")))
    result = proof.answer(question, THEIRS, 5).model_dump(mode="json")
    return Reply(id=command.id, ok=True, result=result)


@pytest.mark.bound("cloud.proofs_waiting_max")
@turned
async def test_more_gateways_than_may_wait_are_compared_with_their_next_status() -> None:
    """A fleet that comes back at once must not fill the worker's memory with its digests."""
    bench = Bench()
    for number in range(25):
        bench.proofs.proved(f"gw-{number}", PROOF)
    await bench.work()
    assert bench.store.compared == [f"gw-{number}" for number in range(10)]


@pytest.mark.bound("cloud.proof_answer_s_max")
@turned
async def test_a_gateway_that_does_not_answer_is_dropped_and_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence must neither block the others nor keep this one from being compared for ever."""
    bench, clock = Bench(), HandClock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.mono_ms() / 1_000)
    bench.proofs.proved("gw-1", PROOF)
    await bench.work()
    bench.proofs.proved("gw-1", PROOF)
    await bench.work()
    assert len(bench.commands) == 1, "it was still waited for"
    clock.turn(round(SETTINGS.proof_answer_s_max * 1_000) + 1)
    bench.proofs.proved("gw-1", PROOF)
    await bench.work()
    assert len(bench.commands) == 2
    bench.proofs.replied("gw-1", answer(bench.commands[0]))
    assert not bench.proofs.replied("gw-1", Reply(id="c-1", ok=True)), "an operator's command is nobody's here"
    bench.proofs.replied("gw-1", answer(bench.commands[1]))
    await bench.work()
    bench.proofs.replied("gw-1", answer(bench.commands[2]))
    await bench.work()
    assert bench.store.differing == [("gw-1", [(Cell("A-1", "SKU-7", ""), 8, 9)])]


@turned
async def test_an_answer_that_makes_no_sense_ends_the_search() -> None:
    """A gateway of another version, or a hostile one."""
    bench = Bench()
    bench.proofs.proved("gw-1", PROOF)
    await bench.work()
    lie = {"position": "zz", "buckets": 3}
    bench.proofs.replied("gw-1", Reply(id=bench.commands[0].id, ok=True, result=lie))
    await bench.work()
    bench.proofs.proved("gw-1", PROOF)
    await bench.work()
    assert bench.store.differing == []

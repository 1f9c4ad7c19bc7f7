"""Stock proof: the digest in a gateway's status is compared with the cloud's at the same position.

Where they differ, the cells are found by bisection over the link, a few questions instead of the whole stock, and an
alarm names them. An alarm is raised only for differences that were found: a digest can be out of step for a moment,
while a verdict of the cloud is on its way to the gateway.

Invariant: bounded. One bisection at a time for each gateway, and so many gateways at most; who does not answer is
dropped.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from pydantic import ValidationError

from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.settings import IngestSettings
from cloud_ingest.threads import uninterrupted
from cloud_ingest.waiting import Waiting
from cloud_store.base.errors import StoreError
from cloud_store.reports.stock_checks import ProofStore
from wire_protocol import topics
from wire_protocol.messages import Command, Reply
from wire_protocol.proof import Bisection, ProofAnswer, StockProof
from wire_protocol.topics import Channel

RETRY_S: Final = 1.0
QUESTION: Final = "proof-"  # how the ids of our commands begin
_LOG = structlog.get_logger()


@dataclass(slots=True)
class _Search:
    """A bisection under way; `command` is the question that waits for its answer."""

    bisection: Bisection
    number: int = 0
    command: str = ""
    until_s: float = 0.0


class Proofs:
    """Compares, asks, and raises the alarm."""

    def __init__(
        self,
        settings: IngestSettings,
        store: ProofStore,
        publish: Callable[[str, bytes], None],
        metrics: WorkerMetrics,
    ) -> None:
        self._settings, self._store, self._publish, self._metrics = settings, store, publish, metrics
        self._proofs: dict[str, StockProof] = {}
        self._replies: Waiting[str, Reply] = Waiting(
            messages_max=settings.proofs_waiting_max, bytes_max=settings.waiting_bytes_max
        )
        self._searches: dict[str, _Search] = {}
        self._work = asyncio.Event()

    def proved(self, gateway: str, proof: StockProof) -> None:
        """A gateway has told its digest; the latest of each is kept until it is compared."""
        if gateway in self._proofs or len(self._proofs) < self._settings.proofs_waiting_max:
            self._proofs[gateway] = proof
            self._work.set()

    def replied(self, gateway: str, reply: Reply, size: int = Reply.bytes_max) -> bool:
        """A gateway has answered a command. Returns whether it was one of ours; only what it was asked is looked at."""
        search = self._searches.get(gateway)
        if search is not None and reply.id == search.command:
            self._replies.put(gateway, reply, size)
            self._work.set()
        return reply.id.startswith(QUESTION)

    async def run(self) -> None:
        """Compare and ask until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                while self._replies:
                    await self._go_on(*self._replies.pop_first())
                while self._proofs:
                    gateway = next(iter(self._proofs))
                    await self._compare(gateway, self._proofs[gateway])
                    self._proofs.pop(gateway, None)
            except StoreError as error:
                _LOG.warning("proofs_failed", reason=str(error), hint=error.hint)
                self._work.set()
                await asyncio.sleep(RETRY_S)

    async def _compare(self, gateway: str, proof: StockProof) -> None:
        scan_s = self._settings.proof_scan_s
        found = await uninterrupted(lambda: self._store.compare(gateway, proof, scan_s=scan_s))
        if found is None:
            return
        result = "agrees" if found.agrees and found.intact else "differs" if found.comparable else "elsewhere"
        self._metrics.proofs.labels(result).inc()
        if found.agrees and found.intact:
            return
        if not found.intact:
            _LOG.error("site_balances_damaged", gateway=gateway, hint="stocktide cloud ledger verify")
        elif not found.comparable:
            return
        await self._begin(gateway)

    async def _begin(self, gateway: str) -> None:
        now_s = time.monotonic()
        for name in [name for name, search in self._searches.items() if search.until_s < now_s]:
            del self._searches[name]
        if gateway in self._searches or len(self._searches) >= self._settings.proofs_waiting_max:
            return
        snapshot = await uninterrupted(lambda: self._store.snapshot(gateway))
        if snapshot is not None:
            self._searches[gateway] = _Search(Bisection(snapshot.on_hand, snapshot.position))
            self._ask(gateway)

    def _ask(self, gateway: str) -> None:
        search = self._searches[gateway]
        question = search.bisection.next_question()
        assert question is not None  # noqa: S101 - whoever calls has looked
        now_ms, wait_s = time.time_ns() // 1_000_000, self._settings.proof_answer_s_max
        search.number, search.until_s = search.number + 1, time.monotonic() + wait_s
        search.command = f"{QUESTION}{now_ms}-{search.number}"
        command = Command(
            id=search.command,
            name="prove-stock",
            arguments={"prefixes": ",".join(question.prefixes)},
            expires_ms=now_ms + round(wait_s * 1000),
        )
        self._publish(topics.link(gateway, Channel.COMMAND), command.encode())

    async def _go_on(self, gateway: str, reply: Reply) -> None:
        search = self._searches.get(gateway)
        if search is None or reply.id != search.command:
            return  # delivered twice, or too late
        try:
            answer = ProofAnswer.model_validate_json(json.dumps(reply.result)) if reply.ok else None
        except ValidationError:
            answer = None
        if answer is None:
            _LOG.warning("proof_refused", gateway=gateway, reason=reply.reason)
            del self._searches[gateway]
            return
        bisection = search.bisection
        await uninterrupted(lambda: bisection.receive(answer))
        if bisection.next_question() is not None:
            self._ask(gateway)
            return
        del self._searches[gateway]
        if bisection.moved or not bisection.differences:
            return  # goods have moved meanwhile, or a verdict has arrived: the next status tells
        differences = bisection.differences
        _LOG.error("stock_differs", gateway=gateway, cells=len(differences), rounds=bisection.rounds)
        await uninterrupted(lambda: self._store.differ(gateway, differences, complete=bisection.complete))

"""Stock proof: the digest in a gateway's status is compared with the cloud's at the same position.

Where they differ, the cells are found by bisection over the link, a few questions instead of the whole stock, and an
alarm names them. An alarm is raised only for differences that were found: a digest can be out of step for a moment,
while a verdict of the cloud is on its way to the gateway.

Invariant: one bisection at a time for each gateway, for a bounded number of gateways; one that does not answer is
dropped.
"""

import asyncio
import json
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog
from pydantic import ValidationError

from cloud_ingest.context import Context
from cloud_ingest.mailbox import Mailbox
from cloud_store.reports import stock_checks
from wire_protocol import topics
from wire_protocol.messages import Command, Reply
from wire_protocol.proof import Bisection, DigestAnswer, StockDigest
from wire_protocol.topics import Channel

QUESTION: Final = "proof-"  # how the ids of our commands begin
_LOG = structlog.get_logger()


@dataclass(slots=True)
class _Search:
    """A bisection under way; `command` is the question that waits for its answer."""

    bisection: Bisection
    number: int = 0
    command: str = ""
    until_s: float = 0.0


class StockChecks:
    """Compares, asks, and raises the alarm."""

    def __init__(self, context: Context) -> None:
        self._context, self._database, settings = context, context.database, context.settings
        self._proofs: Mailbox[str, StockDigest] = context.mailbox("stock_checks", settings.proofs_waiting_max)
        self._replies: Mailbox[str, Reply] = context.mailbox("stock_answers", settings.proofs_waiting_max)
        self._searches: dict[str, _Search] = {}

    def reported(self, gateway: str, proof: StockDigest) -> None:
        """A gateway has reported its digest; the latest of each is kept until it is compared."""
        self._proofs.put(gateway, proof)

    def replied(self, gateway: str, reply: Reply, size_bytes: int) -> bool:
        """A gateway has answered a command. Returns whether it was one of ours; only what was asked is looked at."""
        search = self._searches.get(gateway)
        if search is not None and reply.id == search.command:
            self._replies.put(gateway, reply, size_bytes)
        return reply.id.startswith(QUESTION)

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.serve(self._proofs, self._compare)
        yield self._context.serve(self._replies, self._go_on)

    async def _compare(self, gateway: str, proof: StockDigest) -> None:
        scan_s = self._context.settings.proof_scan_s
        found = await self._database.run(stock_checks.compare, gateway, proof, scan_s=scan_s)
        if found is None:
            return
        result = "agrees" if found.agrees and found.intact else "differs" if found.comparable else "elsewhere"
        self._context.metrics.proofs.labels(result).inc()
        if found.agrees and found.intact:
            return
        if not found.intact:
            _LOG.error("site_balances_damaged", gateway=gateway, hint="stocktide cloud ledger verify")
        elif not found.comparable:
            return
        await self._begin(gateway)

    async def _begin(self, gateway: str) -> None:
        now_s = self._context.mono_s()
        for name in [name for name, search in self._searches.items() if search.until_s < now_s]:
            del self._searches[name]
        if gateway in self._searches or len(self._searches) >= self._context.settings.proofs_waiting_max:
            return
        snapshot = await self._database.run(stock_checks.snapshot, gateway)
        if snapshot is not None:
            self._searches[gateway] = _Search(Bisection(snapshot.on_hand, snapshot.position))
            self._ask(gateway)

    def _ask(self, gateway: str) -> None:
        search = self._searches[gateway]
        question = search.bisection.next_question()
        assert question is not None  # noqa: S101 - the caller has looked
        now_ms, wait_s = self._context.now_ms(), self._context.settings.proof_answer_s_max
        search.number, search.until_s = search.number + 1, self._context.mono_s() + wait_s
        search.command = f"{QUESTION}{now_ms}-{search.number}"
        command = Command(
            id=search.command,
            name="prove-stock",
            arguments={"prefixes": ",".join(question.prefixes)},
            expires_ms=now_ms + round(wait_s * 1000),
        )
        self._context.publish(topics.link(gateway, Channel.COMMAND), command.encode())

    async def _go_on(self, gateway: str, reply: Reply) -> None:
        search = self._searches.get(gateway)
        if search is None or reply.id != search.command:
            return  # delivered twice, or too late
        try:
            answer = DigestAnswer.model_validate_json(json.dumps(reply.result)) if reply.ok else None
        except ValidationError:
            answer = None
        if answer is None:
            _LOG.warning("proof_refused", gateway=gateway, reason=reply.reason)
            del self._searches[gateway]
            return
        bisection = search.bisection
        await asyncio.to_thread(bisection.receive, answer)
        if bisection.next_question() is not None:
            self._ask(gateway)
            return
        del self._searches[gateway]
        if bisection.moved or not bisection.differences:
            return  # goods have moved meanwhile, or a verdict has arrived: the next status tells
        differences = bisection.differences
        _LOG.error("stock_differs", gateway=gateway, cells=len(differences), rounds=bisection.rounds)
        await self._database.run(stock_checks.differ, gateway, differences, complete=bisection.complete)

"""The merge against the definition of stock, on real TimescaleDB.

Broken when: the order, duplication, lateness or batching of frames, or a second worker, changes any on-hand, any
variance or `@adjust`, or when goods appear from nowhere.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count as numbers
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_store.base.connection import Connection
from cloud_store.merge import site_digests
from cloud_store.merge.arrivals import ArrivedFrame
from cloud_store.reports import snapshots, verification
from cloud_store.tenancy import registry
from testbed.store import MergeSession
from tests.cloud_store import histories
from tests.cloud_store.on_a_server import ON_A_SERVER
from wire_protocol import proof as stock_proof
from wire_protocol import stock
from wire_protocol.entries import LedgerEntry

GATEWAYS_MAX = 3
_SITES = numbers(1)
# One database serves all examples of a test: each example has a site of its own.


@dataclass(frozen=True)
class Example:
    """What gateways wrote, how it was framed, and the seed of how it arrived."""

    ledgers: list[list[LedgerEntry]]
    frame_sizes: list[int]
    batch_sizes: list[int]
    seed: int


examples = st.builds(
    Example,
    ledgers=st.lists(histories.ledger(), min_size=1, max_size=GATEWAYS_MAX),
    frame_sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    batch_sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)


class Site:
    """A fresh site, with one gateway for each ledger."""

    def __init__(self, connection: Connection, example: Example) -> None:
        self.connection, self.example, self.name = connection, example, f"site-{next(_SITES)}"
        registry.add_site(connection, "acme", self.name)
        self.ledgers = {f"{self.name}-{letter}": ledger for letter, ledger in zip("abc", example.ledgers, strict=False)}
        for gateway in self.ledgers:
            registry.add_gateway(connection, "acme", self.name, gateway)
        self.frames = {
            name: histories.seal_all(name, entries, example.frame_sizes) for name, entries in self.ledgers.items()
        }

    def delivery(self, chance: Random) -> Iterator[ArrivedFrame]:
        """Frames of all gateways interleaved, some twice, some too early; then all again, as senders would."""
        waiting = {name: list(sealed) for name, sealed in self.frames.items()}
        while waiting:
            name = chance.choice(sorted(waiting))
            yield waiting[name].pop(0)
            if not waiting[name]:
                del waiting[name]
            if chance.random() < 0.4:
                yield chance.choice(self.frames[chance.choice(sorted(self.frames))])
        for sealed in self.frames.values():
            yield from sealed

    def require_agreement(self) -> None:
        """Assert that the database has what the oracle makes of the same entries."""
        expected = stock.oracle(
            pair for name, entries in self.ledgers.items() for pair in histories.keyed(name, entries)
        )
        found = snapshots.balances(self.connection, "acme", self.name)
        assert list(stock.differences(found.items(), expected.on_hand.items())) == []
        assert snapshots.variances(self.connection, "acme", self.name) == expected.variance
        assert snapshots.imbalance(self.connection) == {}
        kept = site_digests.of_gateway(self.connection, next(iter(self.ledgers)), scan_s=0)
        assert kept is not None
        assert kept.digest == stock_proof.stock_digest(expected.on_hand.items())
        logs = [(name, histories.EPOCH, len(entries)) for name, entries in self.ledgers.items()]
        assert kept.position == stock_proof.log_position(logs)
        assert kept.recent[kept.position] == kept.digest
        assert verification.verify(self.connection, verification.sites(self.connection, "acme", self.name)[0]).whole


def _chance(seed: int) -> Random:
    return Random(seed)


def deliver(merger: MergeSession, frames: Sequence[ArrivedFrame], batch_sizes: Sequence[int]) -> None:
    """Merge frames in batches, using the sizes in turn."""
    start, turn = 0, 0
    while start < len(frames):
        size = batch_sizes[turn % len(batch_sizes)]
        merger.merge(frames[start : start + size])
        start, turn = start + size, turn + 1


@pytest.mark.timeout(300)
def test_any_delivery_gives_the_stock_of_the_oracle(connection: Connection, database_url: str) -> None:
    """Interleaved, duplicated, too early, re-batched: always the same stock."""
    merger = MergeSession(database_url)

    @ON_A_SERVER
    @given(examples)
    def check(example: Example) -> None:
        site = Site(connection, example)
        deliver(merger, list(site.delivery(_chance(example.seed))), example.batch_sizes)
        site.require_agreement()

    try:
        check()
    finally:
        merger.close()


@pytest.mark.timeout(300)
def test_two_workers_at_once_give_the_stock_of_the_oracle(connection: Connection, database_url: str) -> None:
    """Both workers deliver everything, in their own order: the cursor's lock lets each frame in once."""
    mergers = [MergeSession(database_url), MergeSession(database_url)]

    @settings(ON_A_SERVER, max_examples=60)
    @given(examples)
    def check(example: Example) -> None:
        site = Site(connection, example)
        with ThreadPoolExecutor() as pool:
            running = [
                pool.submit(deliver, merger, list(site.delivery(_chance(example.seed + number))), example.batch_sizes)
                for number, merger in enumerate(mergers)
            ]
            for worker in running:
                worker.result()
        site.require_agreement()

    try:
        check()
    finally:
        for merger in mergers:
            merger.close()

"""The parts of a stack, each an operating system process that can be killed, and the load that the devices make."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from cloud_store.base.connection import connect
from cloud_store.reports import snapshots
from edge_agent.ledger import database, queries
from edge_agent.ledger.sql import statement
from stocktide.demo.plan import DemoSite
from stocktide.demo.proof import Proof, prove
from testbed.agent_process import AgentProcess
from testbed.eventually import eventually
from testbed.lossy_link import LossyPackets, ProxyThread
from testbed.scanner import Scanner
from testbed.services import PrivateBroker, PrivateDatabase
from testbed.worker_process import WorkerProcess
from wire_protocol import stock
from wire_protocol.entries import LedgerEntry
from wire_protocol.messages import DeviceEvent

SETTLE_S: Final = 90.0
SKUS: Final = 40
FIRST_EVENTS: Final = 2
NEW_SKU_EVENTS: Final = 50  # how many events until the next new SKU
SHELVES: Final = ("A-01", "B-02", "C-03")
LOTS: Final = (None, None, "L-1")
TICK_S: Final = 0.02


@dataclass
class Gateway:
    """A gateway with its own broker, its agent and its scanners; `sent` is every event, by device and event id."""

    site: DemoSite
    agent: AgentProcess
    broker: PrivateBroker
    scanners: list[Scanner]
    events: int = 0
    sent: dict[tuple[str, str], DeviceEvent] = field(default_factory=dict)

    def scan(self, count: int) -> None:
        """Every scanner reports so many things: mostly movements of all kinds, and counts."""
        for _ in range(count):
            for scanner in self.scanners:
                self.events += 1
                event = work(self.events, random.Random(f"{self.site.gateway} {self.events}"))
                self.sent[scanner.name, event.id] = event
                scanner.report(event)

    def register(self, devices: list[str]) -> None:
        """Let more devices speak here."""
        with closing(database.open_writer(self.agent.ledger)) as connection, database.transaction(connection):
            connection.executemany(statement("insert_device"), [(name, "device") for name in devices])

    def ledger(self) -> dict[str, Any]:
        """How far the ledger's stream is: `waiting`, `acked_frame` and so on."""
        with closing(database.open_reader(self.agent.ledger)) as reader:
            found: dict[str, Any] = queries.status(reader, self.agent.ledger)["streams"]["ledger"]
            return found

    def waiting(self) -> int:
        """Entries that the cloud has not acknowledged."""
        return int(self.ledger()["waiting"])

    def times(self, event: str) -> int:
        """How often the agent has logged an event, in all its lives."""
        return self.agent.times(event)

    def receipts(self) -> int:
        """Events with a receipt."""
        return sum(len(scanner.committed) for scanner in self.scanners)

    def settle(self) -> None:
        """Wait until every event has its receipt (sent again as firmware does) and the cloud has every entry."""
        eventually(self._all_receipts, within_s=SETTLE_S, explain=self._missing)
        eventually(
            lambda: self.waiting() == 0, within_s=SETTLE_S, explain=lambda: f"for acknowledgements: {self.ledger()}"
        )

    def _missing(self) -> str:
        pending = {scanner.name: sorted(scanner.pending)[:3] for scanner in self.scanners}
        return (
            f"for receipts: {self.receipts()} of {self.events}, refused {[s.refused for s in self.scanners]}, {pending}"
        )

    def _all_receipts(self) -> bool:
        for scanner in self.scanners:
            heard = len(scanner.committed)
            expected = self.events // len(self.scanners)
            # As firmware: again after silence. Sending again while receipts still come only makes the queue longer.
            if not scanner.wait_for_receipts(expected, timeout_s=1) and len(scanner.committed) == heard:
                scanner.resend()
        return not self.scanners or self.receipts() == self.events


@dataclass
class Stack:
    """Everything of one test. `link` is what lies between the gateways and the cloud's broker, if it can be broken."""

    cloud_broker: PrivateBroker
    database_url: str
    gateways: list[Gateway]
    workers: list[WorkerProcess]
    database: PrivateDatabase | None = None
    link: ProxyThread | LossyPackets | None = None

    def prove(self) -> Proof:
        """Settle everything and compare devices, ledgers and cloud."""
        for gateway in self.gateways:
            gateway.settle()
        ledgers = {gateway.site: gateway.agent.ledger for gateway in self.gateways}
        return prove(self.database_url, ledgers, {g.site.gateway: (g.events, 0) for g in self.gateways})

    def require_agreement(self) -> None:
        """Assert that devices, ledgers, cloud and oracle agree, and that each event counts once."""
        found = self.prove()
        assert (found.problems, [row.problems for row in found.sites]) == ([], [[]] * len(self.gateways))
        assert [row.cloud_distinct for row in found.sites] == [gateway.events for gateway in self.gateways]
        for gateway in self.gateways:
            self._require_oracle(gateway)

    def _require_oracle(self, gateway: Gateway) -> None:
        """The proof compares two implementations of stock; this compares both with its definition."""
        with closing(database.open_reader(gateway.agent.ledger)) as reader:
            entries = list(queries.entries(reader))
            edge = queries.balances(reader)
        recorded = {(entry.device, entry.event): _meaning(entry) for _, entry in entries}
        assert recorded == {key: _meaning(event) for key, event in gateway.sent.items()}
        expected = stock.oracle(entries)
        with closing(connect(self.database_url, application="tests")) as cloud:
            there = snapshots.balances(cloud, gateway.site.tenant, gateway.site.name)
            assert snapshots.variances(cloud, gateway.site.tenant, gateway.site.name) == expected.variance
        assert list(stock.differences(edge.items(), expected.on_hand.items())) == []
        assert list(stock.differences(there.items(), expected.on_hand.items())) == []


# Makes a stack of two gateways; see the fixture `build`.
Build: TypeAlias = Callable[..., Stack]


class Load:
    """Devices that work on, whatever happens; `go_on` waits until they have done so many more seconds of work."""

    def __init__(self, stack: Stack, events_per_s: float) -> None:
        self._gateways = stack.gateways
        self._per_tick = events_per_s * TICK_S / sum(len(gateway.scanners) for gateway in stack.gateways)
        self._ticks = self._surge = 0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._failure: BaseException | None = None

    def go_on(self, seconds: float) -> None:
        """Wait for so many seconds' worth of events."""
        with self._changed:
            until = self._ticks + max(1, round(seconds / TICK_S))
            self._changed.wait_for(lambda: self._ticks >= until or self._failure is not None, SETTLE_S)
        assert self._failure is None, self._failure

    def surge(self, scans: int) -> None:
        """Have every scanner report so many things at once, now: what is queued then is there to be lost."""
        with self._changed:
            self._surge = scans

    def _run(self) -> None:
        owed = 0.0
        try:
            while not self._stop.wait(TICK_S):
                with self._changed:
                    owed, self._surge = owed + self._per_tick + self._surge, 0
                for gateway in self._gateways:
                    gateway.scan(int(owed))
                owed -= int(owed)
                with self._changed:
                    self._ticks += 1
                    self._changed.notify_all()
        except BaseException as error:
            self._failure = error
            raise

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """Work while the block runs."""
        thread = threading.Thread(target=self._run, name="load")
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()


def work(number: int, chance: random.Random) -> DeviceEvent:
    """Something that happens in a warehouse: every kind of movement that a scanner reports, and counts.

    The goods change with time, so that at any moment some are new to the cloud. Each scanner begins by receiving some.
    """
    image_store, other = chance.sample(SHELVES, 2)
    kind = chance.choices(["receive", "pick", "move", "scrap", "count"], [4, 5, 3, 1, 2])[0]
    kind = "receive" if number <= FIRST_EVENTS else kind
    places = {
        "receive": {"destination": image_store},
        "pick": {"source": image_store},
        "move": {"source": image_store, "destination": other},
        "scrap": {"source": image_store},
        "count": {"location": image_store},
    }[kind]
    sku = f"SKU-{chance.randrange(SKUS) + number // NEW_SKU_EVENTS}"
    what = {"sku": sku, "lot": chance.choice(LOTS), "quantity": chance.randint(1, 20)}
    return DeviceEvent.model_validate({"id": f"1-{number}", "kind": kind} | what | places)


def _meaning(event: DeviceEvent | LedgerEntry) -> tuple[object, ...]:
    """What a device said: what must not change on the way, whatever the ledger adds."""
    return event.kind, event.sku, event.lot, event.quantity

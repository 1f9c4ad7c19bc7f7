"""A site of several gateways for tests: real ledgers in files, their frames, and the cloud as a shelf for frames."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import strategies as st

from edge_agent.ledger import database, outbox, queries
from edge_agent.ledger.clock import instant
from edge_agent.ledger.drafts import Arrival, Draft, draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.outbox import Outbox
from edge_agent.ledger.site_logs import SiteLogWriter, known_logs
from testbed.hand_clock import HandClock
from wire_protocol import frames
from wire_protocol.entries import ENTRY, Count, LedgerEntry, Movement
from wire_protocol.replication import Verdict
from wire_protocol.site_messages import SiteFrame
from wire_protocol.stock import EntryKey, Stock, oracle

START_MS = 1_790_000_000_000


@dataclass
class SiteGateway:
    """One gateway: its ledger, its clock, and what it has sealed."""

    ledger: Ledger
    clock: HandClock
    sealed: list[SiteFrame] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The gateway's name."""
        return self.ledger.gateway

    def append(self, *drafts: Draft, late_ms: int = 0) -> list[int | None]:
        """Append in one transaction; `late_ms` is how long ago it happened."""
        if late_ms:
            drafts = tuple(replace(made, arrival=Arrival(instant(self.clock), late_ms)) for made in drafts)
        with database.transaction(self.ledger.connection):
            return self.ledger.append(drafts)

    def seal(self, entries_max: int = 500) -> list[SiteFrame]:
        """Seal everything that waits; as the cloud would pass it down."""
        before = len(self.sealed)
        while True:
            with database.transaction(self.ledger.connection):
                made = Outbox(self.ledger).seal("ledger", entries_max, contact_mono_ms=None)
            if made is None:
                return self.sealed[before:]
            body = outbox.body(self.ledger.connection, "ledger", made.frame)
            assert body is not None
            self.sealed.append(SiteFrame(gateway=self.name, received_ms=self.clock.now_ms(), frame=body))

    def receive(self, *messages: SiteFrame) -> list[Verdict]:
        """Take frames that the cloud passes down, each in a transaction of its own."""
        verdicts = []
        for message in messages:
            with database.transaction(self.ledger.connection):
                decoded = frames.decode(message.frame)
                verdicts.append(SiteLogWriter(self.ledger).receive(message, decoded))
        return verdicts

    def fetch(self, everything: Sequence[SiteFrame]) -> None:
        """Take from the cloud whatever is missing of the other logs, in order."""
        known = {(log.gateway, log.epoch): log.frame for log in known_logs(self.ledger.connection)}
        for message in everything:
            header = frames.decode(message.frame).header
            own = (message.gateway, header.epoch) == (self.name, self.ledger.epoch)
            if not own and header.frame > known.get((message.gateway, header.epoch), 0):
                assert self.receive(message) == [Verdict.MERGE]

    def own_entries(self) -> list[tuple[EntryKey, LedgerEntry]]:
        """What this gateway has written in its present epoch."""
        found = self.ledger.connection.execute("SELECT seq, body FROM entry ORDER BY seq")
        parsed = [(seq, ENTRY.validate_json(body)) for seq, body in found]
        return [
            (EntryKey(entry.hlc, self.name, self.ledger.epoch, seq), entry)
            for seq, entry in parsed
            if isinstance(entry, Movement | Count)
        ]

    def stock(self) -> Stock:
        """On hand and variances, as this ledger has them."""
        rows = self.ledger.connection.execute("SELECT log, gateway, epoch FROM log")
        logs = {log: (gateway, epoch) for log, gateway, epoch in rows}
        counted = self.ledger.connection.execute("SELECT hlc, log, seq, variance FROM movement WHERE kind = 'count'")
        return Stock(
            queries.balances(self.ledger.connection),
            {EntryKey(hlc, *logs[log], seq): variance for hlc, log, seq, variance in counted},
        )


@contextmanager
def gateways(folder: Path, names: Sequence[str], epoch: str | None = None) -> Iterator[list[SiteGateway]]:
    """Ledgers of several gateways of one site."""
    with ExitStack() as stack:
        made = []
        for name in names:
            clock = HandClock(START_MS)
            ledger = stack.enter_context(Ledger.create(folder / f"{name}.db", name, clock, epoch=epoch))
            made.append(SiteGateway(ledger, clock))
        yield made


def defined(sites: Sequence[SiteGateway]) -> Stock:
    """The stock that the definition gives for everything that these gateways have written."""
    return oracle(pair for gateway in sites for pair in gateway.own_entries())


# Few shelves and items, so that late counts, late movements and ties are common.
drafts: st.SearchStrategy[Draft] = st.one_of(
    st.builds(
        lambda image_store, quantity, lot: draft("count", "screw", quantity, location=image_store, lot=lot),
        st.sampled_from(["A-1", "A-2"]),
        st.integers(0, 20),
        st.sampled_from([None, "L1"]),
    ),
    st.builds(
        lambda route, quantity, lot: draft(route[0], "screw", quantity, source=route[1], destination=route[2], lot=lot),
        st.sampled_from(
            [
                ("receive", "@supplier", "A-1"),
                ("pick", "A-1", "@customer"),
                ("move", "A-1", "A-2"),
                ("move", "A-2", "A-1"),
                ("correct", "A-1", "@adjust"),
                ("correct", "@adjust", "A-2"),
                ("scrap", "A-2", "@scrap"),
            ]
        ),
        st.integers(1, 9),
        st.sampled_from([None, "L1"]),
    ),
)


@dataclass(frozen=True)
class Step:
    """One thing that happens at one gateway: it books, its clock is turned, it seals, or it learns of others.

    What it books happened `late_ms` ago.
    """

    gateway: int
    booked: list[Draft]
    turn_ms: int
    late_ms: int
    seal: bool
    hear: int


steps = st.lists(
    st.builds(
        Step,
        gateway=st.integers(0, 2),
        booked=st.lists(drafts, max_size=3),
        late_ms=st.sampled_from([0, 0, 0, 1_001, 2_002, 400_000, 86_400_000]),
        turn_ms=st.sampled_from([0, 0, 1, 5, -3, 2_000, -2_000, 400_000]),
        seal=st.booleans(),
        hear=st.integers(0, 6),
    ),
    max_size=14,
)

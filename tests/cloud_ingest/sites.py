"""A site of gateways that make load, whose stock the oracle knows."""

import time
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

from cloud_store.base.connection import Connection, connect
from cloud_store.reports import snapshots
from cloud_store.tenancy import registry
from testbed.gateways import Fleet, LoadGateway, epoch
from testbed.workload import Sealer, Warehouse
from wire_protocol import stock
from wire_protocol.entries import LedgerEntry
from wire_protocol.replication import SenderLimits
from wire_protocol.stock import EntryKey

# Real gateways wait seconds before they send again; a test need not.
IMPATIENT = SenderLimits(resend_delay_ms=300, resend_delay_ms_max=1_000)


@dataclass
class Site:
    """A tenant with one site, its gateways, and everything that they have written."""

    database_url: str
    prefix: str
    gateways: list[LoadGateway] = field(default_factory=list)
    entries: list[tuple[EntryKey, LedgerEntry]] = field(default_factory=list)
    held: dict[str, list[bytes]] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """How many frames the gateways have sealed, those that are held back apart."""
        return sum(len(gateway.frames) for gateway in self.gateways)

    def add_gateway(
        self, frames: int, *, held: int = 0, entries_per_frame: int = 40, limits: SenderLimits = IMPATIENT
    ) -> LoadGateway:
        """Register a gateway that has sealed so many frames, one entry in twenty a count.

        It seals the last `held` of them only when they are released: however fast the machine is, there is something
        left to do until then.
        """
        number = len(self.gateways)
        name = f"{self.prefix}-{number}"
        with closing(connect(self.database_url, application="test")) as connection:
            registry.add_gateway(connection, self.prefix, "berlin", name)
        ledger = Warehouse(number, int(time.time() * 1000) - 3_600_000, counts=0.05).entries()
        sealer, sealed, seq = Sealer(name, epoch()), [], 0
        for _ in range(frames):
            run = list(islice(ledger, entries_per_frame))
            sealed.append(sealer.seal(run))
            self.entries += [(EntryKey(entry.hlc, name, epoch(), seq + n), entry) for n, entry in enumerate(run, 1)]
            seq += len(run)
        gateway = LoadGateway(name, epoch(), sealed[: frames - held], limits=limits)
        self.held[name] = sealed[frames - held :]
        self.gateways.append(gateway)
        return gateway

    def fleet(self, mqtt_url: str, mqtt_version: str = "5") -> Fleet:
        """The gateways, to be connected."""
        return Fleet(mqtt_url, self.gateways, mqtt_version=mqtt_version)

    def release(self, fleet: Fleet, frames: int | None = None) -> None:
        """Let every gateway seal so many of the frames that it holds back, or all of them."""
        for name, held in self.held.items():
            for frame in held[:frames]:
                fleet.add(name, frame)
            del held[:frames]

    def require_agreement(self) -> None:
        """Assert that the cloud has every entry once, and the stock that the oracle makes of them."""
        with closing(connect(self.database_url, application="test")) as connection:
            self._require_agreement(connection)

    def _require_agreement(self, connection: Connection) -> None:
        expected = stock.oracle(self.entries)
        rows = [row for row in snapshots.entries(connection) if row.tenant == self.prefix]
        assert sum(row.rows for row in rows) == sum(row.distinct for row in rows) == len(self.entries)
        found = snapshots.balances(connection, self.prefix, "berlin")
        assert list(stock.differences(found.items(), expected.on_hand.items())) == []
        assert snapshots.variances(connection, self.prefix, "berlin") == expected.variance
        assert snapshots.imbalance(connection) == {}

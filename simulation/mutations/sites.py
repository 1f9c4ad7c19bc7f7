"""How the planted bugs of sites and of recovery do it wrong."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from unittest.mock import patch

from edge_agent.ledger import site_logs, streams
from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.site_logs import SiteLogWriter
from edge_agent.link.site_sync import SiteSync
from wire_protocol.entries import LedgerEntry
from wire_protocol.frames import Frame
from wire_protocol.replication import Verdict
from wire_protocol.site_messages import LogCursor, SiteFrame
from wire_protocol.topics import STREAMS

_STORE = SiteLogWriter._store  # noqa: SLF001 - a planted bug is put where the real one would be
_COUNTING = site_logs._counting  # noqa: SLF001 - as above


def store_booked(self: SiteLogWriter, log: int, message: SiteFrame, frame: Frame, *, booked: bool) -> int:
    """What is staged is booked at once."""
    del booked
    return _STORE(self, log, message, frame, booked=True)


async def cursor_apart(self: SiteSync, message: SiteFrame, frame: Frame) -> Verdict:
    """The cursor of another log moves in a transaction before the rows'."""

    def move(ledger: Ledger) -> Verdict:
        with patch.object(SiteLogWriter, "_store", lambda *_, **__: 0):
            return SiteLogWriter(ledger).receive(message, frame)

    def store(ledger: Ledger) -> None:
        own = (message.gateway, frame.header.epoch) == (ledger.gateway, ledger.epoch)
        row = site_logs.log_row(ledger.connection, message.gateway, frame.header.epoch, staged=own)
        if row is not None:
            _STORE(SiteLogWriter(ledger), row.log, message, frame, booked=not own)

    verdict = await self.write(move)
    if verdict is Verdict.MERGE:
        await self.write(store)
    return verdict


def counting_all(message: SiteFrame, frame: Frame) -> Iterable[tuple[int, LedgerEntry]]:
    """What the cloud has rejected counts at the site's other gateways."""
    return _COUNTING(replace(message, rejected=()), frame)


def nothing_known(_body: str) -> object:
    """No entry is like any other."""
    return object()


def never_lost(_connection: Connection, _heads: Sequence[LogCursor]) -> bool:
    """The cloud is believed to have whatever it ever had."""
    return False


def never_diverged(_connection: Connection, _heads: Sequence[LogCursor]) -> list[int]:
    """The other gateways' logs are believed to be as the cloud has them."""
    return []


def asks_own_once_stopped(self: SiteSync, _logs: Sequence[LogCursor]) -> bool:
    """A stopped ledger asks for its own log, staged or not."""
    return any(streams.position(self.reader, stream).fork for stream in STREAMS)

"""The twin on the link: documents come, what is in force is reported.

Invariant: whatever comes, the cloud gets what is in force afterwards, and why if it is not what came.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.writer import Write
from edge_agent.link.contact import Contact
from edge_agent.provisioning import twin
from edge_agent.provisioning.twin import Configured, TwinWriter
from edge_agent.signals import Signals
from wire_protocol.firmware import ReportedFirmware
from wire_protocol.messages import InvalidMessage
from wire_protocol.problems import REASON_CHARS_MAX
from wire_protocol.topics import Channel
from wire_protocol.twin import DesiredTwin, Limits, ReportedTwin, version_of

GATHER_S: Final = 0.2  # the devices of a site answer together

log = structlog.get_logger("edge_agent.link.uplink")


@dataclass(slots=True)
class TwinSync:
    """One ledger's twin.

    Args:
        reader: a read-only connection to the ledger.
        write: hands a write to the ledger's writer and waits for it.
        signals: `twin_applied` is sent after the commit of another document.
        firmware: how far devices are with their firmware, by model.
    """

    reader: Connection
    write: Write
    signals: Signals
    firmware: Callable[[], Mapping[str, ReportedFirmware]] = dict
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def changed(self) -> None:
        """There is something to report. Call it in the event loop's thread."""
        self._changed.set()

    async def receive(self, contact: Contact, payload: bytes) -> None:
        """Part of `Uplink.on`."""
        report = await self.take(payload)
        await contact.publish(Channel.REPORTED_TWIN, report.encode())

    async def run(self, contact: Contact) -> None:
        """Report the twin in force on contact, and whenever devices have answered."""
        while True:
            self._changed.clear()
            await contact.publish(Channel.REPORTED_TWIN, self.report().encode())
            await self._changed.wait()
            await asyncio.sleep(GATHER_S)

    def report(self) -> ReportedTwin:
        """What is in force."""
        return twin.reported(self.reader, self.firmware())

    def limits(self) -> Limits:
        """How far the twin narrows the settings."""
        return twin.limits(self.reader)

    async def take(self, payload: bytes) -> ReportedTwin:
        """Take a document, if it is valid and newer. Returns what to report."""
        if not payload:
            return self.report()  # the retained document was taken away: what is in force stays in force
        try:
            desired = DesiredTwin.decode(payload)
        except InvalidMessage as error:
            log.warning("twin_refused", reason=str(error), version=version_of(payload))
            reason = str(error)[:REASON_CHARS_MAX]
            return twin.reported(self.reader, self.firmware(), refused=version_of(payload) or 0, reason=reason)
        configured = await self.write(partial(_apply, desired))
        if configured is not None:
            log.info("twin_in_force", version=desired.version, devices_configured=len(configured))
            self.signals.twin_applied.send(configured)
        return self.report()


def _apply(desired: DesiredTwin, ledger: Ledger) -> list[Configured] | None:
    return TwinWriter(ledger).apply(desired)

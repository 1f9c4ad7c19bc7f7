"""The twin on the link: documents come, what is in force is reported.

Invariant: whatever comes, the cloud is told what is in force afterwards, and why if it is not what came.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.writer import Write
from edge_agent.provisioning import twin
from edge_agent.provisioning.twin import Configured, TwinBook
from wire_protocol.firmware import ReportedFirmware
from wire_protocol.messages import InvalidMessage
from wire_protocol.problems import REASON_CHARS_MAX
from wire_protocol.twin import DesiredTwin, Limits, ReportedTwin, version_of

log = structlog.get_logger("edge_agent.link.uplink")


@dataclass(slots=True)
class TwinLink:
    """One ledger's twin.

    Args:
        reader: a read-only connection to the ledger.
        write: hands a write to the ledger's writer and waits for it.
        configure: tells devices what they are to be; called after the commit.
        firmware: how far devices are with their firmware, by model.
        changed: called when another document is in force.
    """

    reader: Connection
    write: Write
    configure: Callable[[Sequence[Configured]], Any]
    firmware: Callable[[], Mapping[str, ReportedFirmware]] = dict
    changed: Callable[[], Any] = lambda: None

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
        told = await self.write(partial(_apply, desired))
        if told is not None:
            log.info("twin_in_force", version=desired.version, devices_told=len(told))
            self.configure(told)
            self.changed()
        return self.report()


def _apply(desired: DesiredTwin, ledger: Ledger) -> list[Configured] | None:
    return TwinBook(ledger).apply(desired)

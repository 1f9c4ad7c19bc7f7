"""The gateway's status, as it is announced to the cloud."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from command_line.version import version
from edge_agent.ledger import queries, stock_digest, streams
from edge_agent.ledger.clock import Clock
from edge_agent.ledger.database import Connection
from wire_protocol.messages import ClockStatus, GatewayStatus, StreamStatus
from wire_protocol.problems import REASON_CHARS_MAX
from wire_protocol.proof import StockDigest
from wire_protocol.topics import STREAMS


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Reads the status from the ledger.

    Args:
        reader: a read-only connection to the ledger.
        ledger: its file.
        clock: this gateway's.
        offset_ms: how far the cloud's clock is ahead, once an acknowledgement gave its time.
        damaged: the stock as it is in the file, when a scan found that it is not what was kept.
        problems: what is not as it should be at this gateway, in words, by part.
    """

    reader: Connection
    ledger: Path
    clock: Clock
    offset_ms: Callable[[], int | None]
    damaged: Callable[[], StockDigest | None] = lambda: None
    problems: Callable[[], dict[str, str]] = dict

    def __call__(self, state: Literal["online", "offline"]) -> GatewayStatus:
        """The status now."""
        facts = queries.status(self.reader, self.ledger)
        positions = {name: streams.position(self.reader, name) for name in STREAMS}
        return GatewayStatus(
            state=state,
            epoch=facts["epoch"],
            version=version(),
            at_ms=self.clock.now_ms(),
            streams={
                name: StreamStatus(
                    last_seq=facts["entries"] if name == "ledger" else at.sealed_seq,
                    sealed_frame=at.sealed_frame,
                    acked_frame=at.acked_frame,
                    acked_seq=at.acked_seq,
                )
                for name, at in positions.items()
            },
            clock=ClockStatus(boot=self.clock.boot, offset_ms=self.offset_ms()),
            dead_letters=facts["dead_letters"],
            readings_dropped=facts["dropped"].get("readings_dropped", 0),
            devices_online=facts["devices_online"],
            stock=self.damaged() or stock_digest.sealed(self.reader),
            problems={part: why[:REASON_CHARS_MAX] for part, why in self.problems().items() if part != "cloud"} or None,
        )

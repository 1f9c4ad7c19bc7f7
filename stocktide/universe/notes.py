"""What an uplink notes in the ledger, each inside a transaction of the writer, and what it tells of it."""

from importlib.metadata import version
from typing import Final

from edge_agent import outbox
from edge_agent.ledger import Ledger
from edge_agent.outbox import Outbox
from wire_protocol.messages import Ack, GatewayStatus, StreamStatus
from wire_protocol.topics import STREAMS, Stream

VERSION: Final = version("stocktide")


def status(ledger: Ledger) -> GatewayStatus:
    """What a gateway announces."""
    at = {stream: outbox.position(ledger.connection, stream) for stream in STREAMS}
    streams: dict[Stream, StreamStatus] = {
        stream: StreamStatus(
            last_seq=place.sealed_seq,
            sealed_frame=place.sealed_frame,
            acked_frame=place.acked_frame,
            acked_seq=place.acked_seq,
        )
        for stream, place in at.items()
    }
    return GatewayStatus(state="online", epoch=ledger.epoch, version=VERSION, streams=streams)


def acked(stream: Stream, frame: int, ledger: Ledger) -> None:
    Outbox(ledger).acked(stream, frame)


def time(zero_ms: int, ledger: Ledger) -> None:
    Outbox(ledger).learn_time(zero_ms)


def bounded(ack: Ack, ledger: Ledger) -> None:
    Outbox(ledger).bounded(ack.stream, ack.bounded)


def verdicts(ack: Ack, ledger: Ledger) -> None:
    Outbox(ledger).verdicts(ack.stream, ack.rejected)


def step_back(stream: Stream, frame: int, ledger: Ledger) -> None:
    Outbox(ledger).stepped_back(stream, frame)


def fork(stream: Stream, reason: str, ledger: Ledger) -> None:
    Outbox(ledger).forked(stream, reason)

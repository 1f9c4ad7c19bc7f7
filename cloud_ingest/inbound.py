"""What comes in from the broker, as values that transport, merge and services share."""

from dataclasses import dataclass

from wire_protocol.topics import Stream


@dataclass(frozen=True, slots=True)
class Arrival:
    """A payload on a frame topic, not yet looked at."""

    gateway: str
    stream: Stream
    topic: str
    payload: bytes
    received_ms: int

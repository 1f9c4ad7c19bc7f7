"""What comes in from the broker, as values that transport, merge and services share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from wire_protocol import topics
from wire_protocol.topics import Channel, Stream


@dataclass(frozen=True, slots=True)
class Inbound:
    """A message as it came in, not yet looked at.

    Attributes:
        sender: the gateway; on a claim's topic, the claim.
        channel: what the topic carries.
        topic: where it was published.
        payload: the bytes.
        received_ms: when it came in, by this worker's clock.
        retained: whether the broker had kept it; then its age is unknown.
    """

    sender: str
    channel: Channel
    topic: str
    payload: bytes
    received_ms: int
    retained: bool = False

    @property
    def stream(self) -> Stream:
        """The stream of a frame; only for the channels of frames."""
        return topics.STREAM_OF[self.channel]


Handler: TypeAlias = Callable[[Inbound], None]


class Publish(Protocol):
    """Publishes a payload, without waiting; what does not fit is dropped, and its receiver requests it again."""

    def __call__(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None: ...

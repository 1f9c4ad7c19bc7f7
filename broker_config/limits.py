"""The bounds of a Mosquitto broker, one documented field each, with defaults for either side.

Invariant: nothing that a client can make grow is without a bound.
"""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from broker_config.policy import Side
from wire_protocol.site_messages import PIECES_BYTES_MAX

# A frame that is passed down with what is said of it is the largest payload; the topic, MQTT 5 properties and the
# packet's own header come on top.
PACKET_OVERHEAD_BYTES: int = 4096

# Connections of the embedded broker, over all its listeners together: `stocktide broker run --connections-max`.
EMBEDDED_CONNECTIONS_MAX: int = 1_000


class BrokerLimits(BaseModel):
    """What a broker accepts and keeps. `for_side` gives the defaults of the cloud's or of a gateway's broker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    packet_bytes_max: int = Field(
        default=PIECES_BYTES_MAX + PACKET_OVERHEAD_BYTES,
        ge=1024,
        le=268_435_455,
        description="Largest MQTT packet; a client that sends a larger one is disconnected.",
    )
    connections_max: int = Field(
        default=20_000, ge=1, le=1_000_000, description="Clients connected at the same time; further ones are refused."
    )
    inflight_messages_max: int = Field(
        default=1_000,
        ge=1,
        le=65_535,
        description="QoS 1 messages sent to one client and not acknowledged yet. A worker acknowledges after its "
        "commit, so this must hold what it merges in one round trip.",
    )
    queued_messages_max: int = Field(
        default=10_000,
        ge=1,
        description="QoS 1 messages kept for one client that is slow or away; later ones are dropped, and sent again "
        "by the client that waits for the application's acknowledgement.",
    )
    queued_bytes_max: int = Field(
        default=64 * 1024 * 1024, ge=1024, description="The same bound in bytes; whichever is reached first counts."
    )
    keepalive_s_max: int = Field(
        default=300,
        ge=10,
        le=65_535,
        description="Longest keepalive a client may ask for: a dead link is found within one and a half times this.",
    )
    session_days_max: int = Field(
        default=1, ge=1, le=365, description="How long the session of a client that stays away is kept."
    )
    save_interval_s: int = Field(
        default=300,
        ge=1,
        le=86_400,
        description="How often sessions, queues and retained messages are written to disk.",
    )

    @classmethod
    def for_side(cls, side: Side, **changes: int) -> Self:
        """The limits of one side's broker, with changes."""
        return cls.model_validate({**_DEFAULTS[side], **changes})

    @classmethod
    def for_claims(cls, **changes: int) -> Self:
        """The limits of the broker that unauthenticated clients reach: small messages, few at a time, nothing kept."""
        return cls.model_validate({**_CLAIMS, **changes})


_DEFAULTS: dict[Side, dict[str, int]] = {
    Side.CLOUD: {},
    Side.GATEWAY: {
        "connections_max": 500,
        # The agent may be away for an upgrade; a busy site scans some tens a second.
        "queued_messages_max": 100_000,
        "queued_bytes_max": 128 * 1024 * 1024,
        # Battery scanners sleep for long between two scans.
        "keepalive_s_max": 3_600,
        "session_days_max": 14,
        # A PUBACK from Mosquitto proves only that the broker has the event in memory. Devices keep an event until
        # the agent's receipt, which follows the commit in the ledger, so a power cut loses nothing; but the less the
        # broker forgets, the less has to be sent again over a weak radio.
        "save_interval_s": 5,
    },
}

_CLAIMS: dict[str, int] = {
    "packet_bytes_max": 128 * 1024,  # an answer with its chain; MQTT's own bytes come on top
    "connections_max": 1_000,
    "inflight_messages_max": 20,
    "queued_messages_max": 20,
    "queued_bytes_max": 1024 * 1024,
    # Mosquitto 2.0 sorts clients into 1.5 times this many seconds, and a client that asks for exactly this much into
    # the second that is being looked at: it is cut at once. One that has not said CONNECT yet counts as asking for 60.
    "keepalive_s_max": 120,
}

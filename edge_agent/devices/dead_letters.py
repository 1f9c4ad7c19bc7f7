"""Dead letters, tried again: the message goes through the same checks as on its first arrival."""

from contextlib import suppress
from pathlib import Path
from typing import Final

from edge_agent.errors import BadInput, EventIdUsed, UnknownDevice
from edge_agent.ledger import database
from edge_agent.ledger.clock import Instant, SystemClock
from edge_agent.ledger.drafts import LATE_MS_MAX, Arrival, Draft, ReadingDraft, from_event, from_reading
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from wire_protocol import topics
from wire_protocol.errors import WireError
from wire_protocol.messages import DeviceEvent, DeviceReading
from wire_protocol.topics import Channel, DeviceTopic

RETRY_MAX: Final = 100_000


def redraft(topic: str, payload: bytes, at: Instant, late_ms_max: int = LATE_MS_MAX) -> Draft | ReadingDraft:
    """The draft of a device message, on its first arrival or later.

    Args:
        topic: where it came.
        payload: what came.
        at: when it came first: that, and not the retry, is what its age counts from.
        late_ms_max: the age up to which a device is believed.

    Raises:
        WireError, BadInput: it cannot be used.
    """
    parsed = topics.parse(topic)
    if isinstance(parsed, DeviceTopic) and parsed.channel is Channel.DEVICE_EVENT:
        event = DeviceEvent.decode(payload)
        return from_event(parsed.device, event, Arrival.of(event, at, late_ms_max))
    if isinstance(parsed, DeviceTopic) and parsed.channel is Channel.DEVICE_READING:
        reading = DeviceReading.decode(payload)
        return from_reading(parsed.device, reading, Arrival.of(reading, at, late_ms_max))
    raise BadInput("this topic carries no events or readings")


def retry_dead_letters(path: Path, late_ms_max: int = LATE_MS_MAX) -> tuple[int, int]:
    """Take what is usable by now into the ledger; returns how many were taken and how many are left."""
    with (
        database.in_our_words(),
        Ledger.open(path, SystemClock()) as ledger,
        database.transaction(ledger.connection),
    ):
        letters = ledger.connection.execute(statement("dead_letters_to_retry"), {"limit": RETRY_MAX}).fetchall()
        taken = 0
        for number, topic, payload, *arrived in letters:
            if _take(ledger, topic, payload, Instant(*arrived), late_ms_max):
                ledger.connection.execute(statement("delete_dead_letter"), (number,))
                taken += 1
        return taken, len(letters) - taken


def _take(ledger: Ledger, topic: str, payload: bytes, at: Instant, late_ms_max: int) -> bool:
    try:
        made = redraft(topic, payload, at, late_ms_max)
        _require_known(ledger, made.device or "")
    except (WireError, BadInput, UnknownDevice):
        return False
    new = ledger.append([made])[0] is not None if isinstance(made, Draft) else ledger.append_readings([made])[0]
    if not new:
        with suppress(EventIdUsed):
            ledger.require_same(made)
            return True
    return new


def _require_known(ledger: Ledger, device: str) -> None:
    if ledger.connection.execute(statement("device_known"), (device,)).fetchone() is None:
        raise UnknownDevice

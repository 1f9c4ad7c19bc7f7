"""Dead letters, tried again: the message goes through the same checks as on its first arrival."""

from pathlib import Path
from typing import Final

from edge_agent.errors import BadInput, UnknownDevice
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.drafts import Draft, ReadingDraft, from_event, from_reading
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from wire_protocol import topics
from wire_protocol.errors import WireError
from wire_protocol.messages import DeviceEvent, DeviceReading
from wire_protocol.topics import Channel, DeviceTopic

RETRY_MAX: Final = 100_000


def redraft(topic: str, payload: bytes) -> Draft | ReadingDraft:
    """The draft of a device message, on its first arrival or later.

    Raises:
        WireError, BadInput: it cannot be used.
    """
    parsed = topics.parse(topic)
    if isinstance(parsed, DeviceTopic) and parsed.channel is Channel.DEVICE_EVENT:
        return from_event(parsed.device, DeviceEvent.decode(payload))
    if isinstance(parsed, DeviceTopic) and parsed.channel is Channel.DEVICE_READING:
        return from_reading(parsed.device, DeviceReading.decode(payload))
    raise BadInput("this topic carries no events or readings")


def retry_dead_letters(path: Path) -> tuple[int, int]:
    """Take what is usable by now into the ledger; returns how many were taken and how many are left."""
    with (
        database.in_our_words(),
        Ledger.open(path, SystemClock()) as ledger,
        database.transaction(ledger.connection),
    ):
        letters = ledger.connection.execute(statement("dead_letters"), {"limit": RETRY_MAX}).fetchall()
        taken = sum(_take(ledger, number, topic, payload) for number, _, topic, payload, _ in letters)
        return taken, len(letters) - taken


def _take(ledger: Ledger, number: int, topic: str, payload: bytes) -> bool:
    try:
        made = redraft(topic, payload)
        _require_known(ledger, made.device or "")
    except (WireError, BadInput, UnknownDevice):
        return False
    if isinstance(made, Draft):
        ledger.append([made])
    else:
        ledger.append_readings([made])
    ledger.connection.execute(statement("delete_dead_letter"), (number,))
    return True


def _require_known(ledger: Ledger, device: str) -> None:
    if ledger.connection.execute(statement("device_known"), (device,)).fetchone() is None:
        raise UnknownDevice

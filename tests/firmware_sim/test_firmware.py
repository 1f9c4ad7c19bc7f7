"""A device's memory: kept until the receipt, sent again, bounded, unique forever."""

import pytest

from firmware_sim.errors import MemoryFull
from firmware_sim.firmware.event_queue import Firmware, Outgoing, SkewedClock
from firmware_sim.firmware.happening import Happening, Sample, Scan
from firmware_sim.firmware.windows import Window
from firmware_sim.fleet.device import rng_of
from wire_protocol.messages import DeviceEvent, DeviceReceipt, Refusal

START_MS = 1_600_000_000_000
TEA = Scan(kind="pick", sku="tea", quantity=1, source="A-01")


def _firmware(**options: object) -> Firmware:
    return Firmware(name="scanner-1", rng=rng_of(1, "scanner-1", "firmware"), **options)  # type: ignore[arg-type]


def _events(messages: list[Outgoing]) -> list[DeviceEvent]:
    return [DeviceEvent.decode(message.payload) for message in messages]


def _ids(messages: list[Outgoing]) -> list[str]:
    return [event.id for event in _events(messages)]


def test_an_event_is_sent_once_and_again_only_after_its_timeout() -> None:
    """Sending on every poll floods the gateway; never sending again loses a scan."""
    firmware = _firmware(resend_ms=1_000, resend_ms_max=8_000)
    firmware.scan(Happening(START_MS, TEA))
    assert _ids(firmware.poll(START_MS, 0)) == ["1-1"]
    assert firmware.poll(START_MS, 999) == []
    again = firmware.poll(START_MS, 1_250)
    assert _ids(again) == ["1-1"]
    assert firmware.poll(START_MS, 3_200) == []  # the second wait is twice as long
    assert (firmware.counters.sent, firmware.counters.resent) == (2, 1)


def test_a_receipt_ends_it() -> None:
    """What the ledger has is forgotten; a receipt that comes twice, or for a stranger's event, changes nothing."""
    firmware = _firmware()
    firmware.scan(Happening(START_MS, TEA))
    firmware.poll(START_MS, 0)
    for _ in range(2):
        firmware.receive(DeviceReceipt(committed=("1-1", "other-9")))
    assert firmware.is_idle
    assert firmware.poll(START_MS, 10**6) == []
    assert firmware.counters.receipts == 1


def test_a_refusal_ends_it_too() -> None:
    """The reason is kept for the person who looks; sending it again would be refused again."""
    firmware = _firmware()
    firmware.scan(Happening(START_MS, TEA))
    firmware.receive(DeviceReceipt(refused=(Refusal(id="1-1", reason="no such shelf"),)))
    assert firmware.is_idle
    assert (firmware.counters.refused, firmware.refusal) == (1, "no such shelf")


def test_a_full_memory_stops_scanning_and_says_so() -> None:
    """The oldest event must not give way to the newest: both were scanned."""
    firmware = _firmware(memory_events_max=2)
    for _ in range(2):
        firmware.scan(Happening(START_MS, TEA))
    with pytest.raises(MemoryFull):
        firmware.scan(Happening(START_MS, TEA))
    assert firmware.counters.memory_full == 1
    assert firmware.missing() == ("1-1", "1-2")
    firmware.receive(DeviceReceipt(committed=("1-1",)))
    assert firmware.scan(Happening(START_MS, TEA)) == "1-3"


def test_a_reading_gives_way_when_memory_is_full() -> None:
    """A reading may be lost, an event not."""
    firmware = _firmware(memory_events_max=1)
    firmware.scan(Happening(START_MS, TEA))
    assert firmware.scan(Happening(START_MS, Sample({"temperature_c": 4.0}))) is None
    assert firmware.counters.readings_dropped == 1


def test_ids_stay_unique_over_reboots_and_memory_survives_them() -> None:
    """A counter that begins again at 1 after a reboot makes the ledger drop new scans as old ones."""
    firmware = _firmware(boot=0xAB, reboots=[(START_MS + 1_000, 500)])
    firmware.scan(Happening(START_MS, TEA))
    assert _ids(firmware.poll(START_MS, 0)) == ["ab-1"]
    assert firmware.poll(START_MS + 1_200, 1_200) == []  # it is booting
    firmware.scan(Happening(START_MS + 1_400, TEA))
    assert _ids(firmware.poll(START_MS + 1_500, 1_500)) == ["ab-1", "ac-1"]
    assert firmware.counters.reboots == 1


def test_offline_it_keeps_its_events_and_sends_them_in_a_burst() -> None:
    """A worker in the cold store goes on scanning."""
    firmware = _firmware(offline=[Window(START_MS, START_MS + 60_000)])
    for second in range(5):
        firmware.scan(Happening(START_MS + second * 1_000, TEA))
        assert firmware.poll(START_MS + second * 1_000, second * 1_000) == []
    assert firmware.next_ms(START_MS + 5_000) == START_MS + 60_000
    assert len(firmware.poll(START_MS + 60_000, 60_000)) == 5


def test_after_a_reconnect_everything_without_a_receipt_is_said_again() -> None:
    """Receipts are QoS 0: those of a broken connection are gone."""
    firmware = _firmware()
    for _ in range(3):
        firmware.scan(Happening(START_MS, TEA))
    firmware.poll(START_MS, 0)
    firmware.receive(DeviceReceipt(committed=("1-2",)))
    firmware.reconnected()
    assert _ids(firmware.poll(START_MS, 1)) == ["1-1", "1-3"]


def test_a_wrong_clock_shows_in_the_event_and_nowhere_else() -> None:
    """The gateway has to cope with it; the device's own sending must not."""
    firmware = _firmware(clock=SkewedClock(offset_ms=-3_600_000, drift_ppm=1_000, since_ms=START_MS - 1_000_000))
    firmware.scan(Happening(START_MS, TEA))
    (message,) = firmware.poll(START_MS, 0)
    assert _events([message])[0].at_ms == START_MS - 3_600_000 + 1_000
    assert message.at_ms == START_MS


@pytest.mark.parametrize(("speed", "ages_ms"), [(1.0, [0, 7_207_200]), (60.0, [0, 120_120]), (None, [0, 0])])
def test_each_sending_says_how_old_the_event_is_by_then(speed: float | None, ages_ms: list[int]) -> None:
    """By a counter that nobody sets, whatever the clock shows, and at the pace of the gateway, which is real time."""
    firmware = _firmware(clock=SkewedClock(offset_ms=-START_MS, drift_ppm=1_000, since_ms=START_MS), speed=speed)
    firmware.scan(Happening(START_MS, TEA))
    sent = firmware.poll(START_MS, 0) + firmware.poll(START_MS + 7_200_000, 10_000)
    assert [event.age_ms for event in _events(sent)] == ages_ms


def test_repeated_reads_carry_the_same_but_for_their_age() -> None:
    """Several reads of one passage are one movement: the id must be the same, and so must the rest."""
    firmware = _firmware()
    firmware.scan(Happening(START_MS, TEA, repeats_ms=(START_MS + 100, START_MS + 200)))
    first = firmware.poll(START_MS, 0)
    firmware.receive(DeviceReceipt(committed=("1-1",)))
    later = firmware.poll(START_MS + 300, 300)
    assert [event.age_ms for event in _events([*first, *later])] == [0, 100, 200]
    assert len({event.model_copy(update={"age_ms": None}) for event in _events([*first, *later])}) == 1
    assert firmware.counters.repeated == 2
    assert firmware.counters.events == 1

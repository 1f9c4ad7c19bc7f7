"""What happens at each kind of device: seeded, honest about its sensor, and always a possible message."""

import random
from itertools import pairwise
from pathlib import Path

import pytest

from firmware_sim.devices.base import HOUR_MS, Device
from firmware_sim.devices.handheld import Handheld
from firmware_sim.devices.portal import REPEATS_MAX, PassageFilter, Portal, TagRead
from firmware_sim.devices.probe import Probe
from firmware_sim.devices.scale import Scale, Weigher
from firmware_sim.devices.scanner import Scanner
from firmware_sim.errors import BadScenario
from firmware_sim.firmware.happening import Happening, Sample, Scan
from firmware_sim.firmware.windows import Window
from firmware_sim.scenarios import builtin, scenario

START_MS = 1_700_000_000_000
DAY = Window(START_MS, START_MS + 8 * HOUR_MS)
HERE = Path()
DEVICES: list[Device] = [
    Scanner(name="s", kind="scanner", skus=["tea", "cocoa"], shelves=["A", "B"], opening_pieces=50),
    Portal(name="p", kind="portal", skus=["crate"], tags_max=10),
    Scale(name="w", kind="scale", sku="nuts", location="S", piece_g=250.0),
    Probe(name="t", kind="probe"),
    Handheld(name="h", kind="handheld", actor="mira", skus=["tea"], shelves=["A", "B"]),
]


def _day(device: Device, seed: int = 1) -> list[Happening]:
    return list(device.day(DAY, random.Random(seed), HERE))


def _bytes(happenings: list[Happening]) -> bytes:
    return b"\n".join(h.what.message(f"1-{n}", h.at_ms).encode() for n, h in enumerate(happenings))


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.kind)
def test_the_same_seed_gives_the_same_day_byte_for_byte(device: Device) -> None:
    """A failure must be replayed from its seed; and another seed is another day."""
    assert _bytes(_day(device)) == _bytes(_day(device))
    assert _bytes(_day(device)) != _bytes(_day(device, seed=2))


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.kind)
def test_a_day_is_in_order_and_within_its_span(device: Device) -> None:
    """A device that speaks of tomorrow, or backwards, would be a fault that nobody asked for."""
    times = [happening.at_ms for happening in _day(device)]
    assert times
    assert times == sorted(times)
    assert times[0] >= DAY.start_ms
    assert times[-1] <= DAY.end_ms + 10_000  # a pallet may still be passing


def test_whole_scenarios_are_the_same_byte_for_byte() -> None:
    """Every device of every example, through the same door as a run."""

    def told(path: Path) -> list[tuple[str, bytes]]:
        streams = scenario.load(path).streams(path.parent)
        return [
            (f"{stream.gateway}/{stream.units[0].name}", _bytes([happening for _, happening in stream.phases[0]]))
            for stream in streams
        ]

    for path in builtin.scenarios():
        assert told(path) == told(path)


def test_one_passage_is_one_movement_however_often_it_is_read() -> None:
    """Twenty reads of one tag are one pallet; two passages of it, an hour apart, are two."""
    reads = [TagRead(START_MS + n * 100, "e1") for n in range(20)]
    reads += [TagRead(START_MS + HOUR_MS + n * 100, "e1") for n in range(10)]
    first, second = PassageFilter().passages(reads)
    assert (first.at_ms, len(first.again_ms)) == (START_MS + 200, 17)
    assert (second.at_ms, len(second.again_ms)) == (START_MS + HOUR_MS + 200, 7)


def test_stray_reads_move_nothing() -> None:
    """A pallet that stands near the door is heard now and then, and has not passed."""
    passages = PassageFilter()
    reads = [TagRead(START_MS + n * 60_000, "near") for n in range(10)]
    reads += [TagRead(START_MS + 700_000 + n * 2_500, "slow") for n in range(10)]
    assert list(passages.passages(reads)) == []
    assert passages.strays == 20


def test_a_tag_parked_in_the_door_is_one_movement() -> None:
    """It is read for an hour; the memory for its reads is bounded, and nothing behind it waits."""
    parked = [TagRead(START_MS + n * 500, "parked") for n in range(7_200)]
    passing = [TagRead(START_MS + 1_800_000 + n * 100, "passing") for n in range(5)]
    found = list(PassageFilter().passages(sorted(parked + passing)))
    assert [passed.epc for passed in found] == ["parked", "passing"]
    assert len(found[0].again_ms) < REPEATS_MAX


def test_a_portal_tells_each_tag_once() -> None:
    """Over a whole day with strays: as many happenings as tags that passed, with their repeats."""
    portal = DEVICES[1]
    scans = [(happening.what, happening.repeats_ms) for happening in _day(portal)]
    serials = [what.serial for what, _ in scans if isinstance(what, Scan)]
    assert len(serials) == len(set(serials)) > 50
    assert sum(len(repeats) for _, repeats in scans) > 3 * len(scans)


def test_a_scale_counts_what_is_there() -> None:
    """Noise, drift and settling must not become goods: each count is the truth of the last few seconds."""
    scale = Scale(name="w", kind="scale", sku="nuts", location="S", piece_g=250.0, noise_g=8.0, drift_g_per_h=40.0)
    weigher, recent, counted, truths = Weigher(scale.piece_g), list[int](), list[int](), list[int]()
    for _, grams, pieces in scale.weights(DAY, random.Random(3)):
        recent = [*recent[-8:], pieces]
        found = weigher.sample(grams)
        if found is not None:
            assert found in recent
            counted.append(found)
        truths.append(pieces)
    assert len(counted) > 0.9 * len(truths)
    assert counted[-1] == truths[-1]


def test_a_scale_speaks_only_when_something_changed() -> None:
    """A count for each sample would drown the ledger."""
    counts = [h.what.quantity for h in _day(DEVICES[2]) if isinstance(h.what, Scan)]
    assert len(counts) > 20
    assert all(one != other for one, other in pairwise(counts))
    assert any(isinstance(happening.what, Sample) for happening in _day(DEVICES[2]))


def test_a_weight_that_is_not_stable_is_no_count() -> None:
    """A hand on the shelf is not four pieces."""
    weigher = Weigher(100.0)
    assert [weigher.sample(grams) for grams in (1_000, 1_400, 1_200, 1_050, 1_010, 1_005)] == [None] * 6


def test_a_handheld_counts_what_it_put_there() -> None:
    """Without miscounts, the shelf holds what was moved to it."""
    handheld = Handheld(
        name="h", kind="handheld", actor="mira", skus=["tea"], shelves=["A", "B"], miscount_rate=0.0, tours_per_h=20.0
    )
    stock = {"A": 0, "B": 0}
    scans = [happening.what for happening in _day(handheld) if isinstance(happening.what, Scan)]
    assert {scan.actor for scan in scans} == {"mira"}
    counts = 0
    for scan in scans:
        if scan.kind == "move" and scan.destination is not None:
            stock[scan.destination] += scan.quantity
        elif scan.kind == "count" and scan.location is not None:
            assert scan.quantity == stock[scan.location]
            counts += 1
    assert counts > 5


def test_a_probe_plays_back_what_was_measured(tmp_path: Path) -> None:
    """A recording shorter than the day begins again, and keeps its own values."""
    rows = "".join(f'"2015-02-02 14:{minute:02d}:00",2{minute % 3}.5,30.25,100,700\n' for minute in range(10))
    (tmp_path / "room.csv").write_text('"Date","Temperature","Humidity","Light","CO2"\n' + rows)
    probe = Probe(name="t", kind="probe", playback="room.csv")
    happenings = list(probe.day(Window(START_MS, START_MS + HOUR_MS), random.Random(1), tmp_path))
    assert len(happenings) == 60
    assert happenings[11].at_ms == START_MS + 11 * 60_000
    expected = {"temperature_c": 21.5, "humidity_pct": 30.25, "light_lux": 100.0, "co2_ppm": 700.0}
    assert happenings[11].what == Sample(expected)


@pytest.mark.parametrize("text", ["", "Date,Temperature\n", "Date,Temperature\nyesterday,20\n", "Temperature\n20\n"])
def test_a_playback_that_cannot_be_played_says_why(text: str, tmp_path: Path) -> None:
    """One line for a person, not a traceback from inside a running fleet."""
    (tmp_path / "room.csv").write_text(text)
    probe = Probe(name="t", kind="probe", playback="room.csv")
    with pytest.raises(BadScenario, match=r"room\.csv"):
        list(probe.day(DAY, random.Random(1), tmp_path))
    with pytest.raises(BadScenario, match="cannot be played back"):
        list(Probe(name="t", kind="probe", playback="absent.csv").day(DAY, random.Random(1), tmp_path))

"""Scenarios that are wrong are refused with the line and the field, before anything runs."""

from pathlib import Path

import pytest

from firmware_sim.errors import BadScenario
from firmware_sim.scenarios import builtin, scenario

GOOD = """\
start: 2026-03-02T08:00:00Z
hours: 1
gateways:
  shop:
    devices:
      - name: till
        kind: scanner
        count: 2
        skus: [tea]
        shelves: [A]
"""


def _load(tmp_path: Path, text: str | bytes) -> scenario.Scenario:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return scenario.load(path)


def test_a_good_scenario_names_its_devices(tmp_path: Path) -> None:
    """`count` makes several devices, each with a name and a life of its own."""
    loaded = _load(tmp_path, GOOD)
    assert loaded.device_names == {"shop": ["till-1", "till-2"]}
    one, other = (list(stream.phases[0]) for stream in loaded.streams(tmp_path))
    assert [happening for _, happening in one] != [happening for _, happening in other]


def test_adding_a_device_does_not_change_the_others(tmp_path: Path) -> None:
    """Randomness belongs to a device; else every edit of a scenario makes another day."""
    more = GOOD + "      - {name: probe, kind: probe}\n"
    first = list(_load(tmp_path, GOOD).streams(tmp_path)[0].phases[0])
    assert first == list(_load(tmp_path, more).streams(tmp_path)[0].phases[0])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hours: 1", "hours: -1", r"line 2, hours: .*greater than 0, not -1"),
        ("hours: 1", "hours: long", r"line 2, hours: .*valid number, not 'long'"),
        ("hours: 1\n", "", r"hours: Field required"),
        ("count: 2", "cuont: 2", r"line 8, gateways.shop.devices.0.cuont: nobody knows this field"),
        ("hours: 1", "hours: 1\nhuors: 2", r"line 3, huors: nobody knows this field"),
        ("hours: 1", "hours: 1\nhours: 2", r"line 3: hours is given twice"),
        ("kind: scanner", "kind: submarine", r"line 6, gateways.shop.devices.0.*submarine"),
        ("skus: [tea]", "skus: []", r"line 9, gateways.shop.devices.0.skus"),
        ("skus: [tea]", "skus: [22423]", r"line 9, gateways.shop.devices.0.skus.0: .*string, not 22423"),
        ("  shop:", "  Shop:", r"line 4, gateways.Shop"),
        ("name: till", "name: till/1", r"line 6, gateways.shop.devices.0.name"),
        ("count: 2", "faults: {duplicate: {rate: 2}}", r"line 8, .*faults.duplicate.rate: .*less than or equal to 1"),
        ("count: 2", "faults: {explode: true}", r"line 8, .*faults.explode: nobody knows"),
        ("shelves: [A]", "shelves: [A", r"not YAML"),
        ("shelves: [A]", "shelves: &a [A]\n        skus2: *a", r"aliases"),
        ("start: 2026-03-02T08:00:00Z", "start: soon", r"line 1, start"),
        ("shelves: [A]\n", "shelves: [A]\n      - {name: till-2, kind: probe}\n", r"till-2 twice"),
    ],
)
def test_errors_name_the_line_and_the_field(old: str, new: str, message: str, tmp_path: Path) -> None:
    """The person who reads it must find the place without counting."""
    with pytest.raises(BadScenario, match=message) as caught:
        _load(tmp_path, GOOD.replace(old, new))
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "content",
    [b"", b"- a\n- b\n", b"just text", b"\xff\xfe", b"{" * 5_000, b"a: !!python/object:os.system x", b"x" * 1_000_001],
)
def test_what_is_no_scenario_is_refused(content: bytes, tmp_path: Path) -> None:
    """Whatever file it is, the answer is one error of ours."""
    with pytest.raises(BadScenario):
        _load(tmp_path, content)
    with pytest.raises(BadScenario, match="cannot be read"):
        scenario.load(tmp_path / "absent.yaml")


def test_every_example_loads_and_says_what_it_is() -> None:
    """An example that its own checks refuse teaches nothing."""
    loaded = [scenario.load(path) for path in builtin.scenarios()]
    assert len(loaded) >= 3
    assert all(example.description for example in loaded)

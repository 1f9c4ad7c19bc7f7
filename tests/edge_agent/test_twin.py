"""The twin at the gateway: whole or not at all, never an older one, and devices are told what concerns them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge_agent.enroll import _first_twin
from edge_agent.ledger import database
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from edge_agent.link.twin_sync import TwinSync
from edge_agent.provisioning import twin
from edge_agent.provisioning.twin import Configured, TwinWriter
from edge_agent.signals import Signals
from testbed.hand_clock import HandClock
from wire_protocol.twin import DesiredState, DesiredTwin, DeviceConfig, merged


def desired(version: int, **devices: dict[str, Any]) -> DesiredTwin:
    """A document with these devices, by name with underscores."""
    named = {name.replace("_", "-"): {"kind": "probe", **body} for name, body in devices.items()}
    return DesiredTwin(version=version, state=merged({}, {"devices": named}))


@pytest.fixture
def ledger(tmp_path: Path, clock: HandClock) -> Iterator[Ledger]:
    """A ledger with one device that a technician has added."""
    with Ledger.create(tmp_path / "ledger.db", "gw-a", clock) as made:
        with database.transaction(made.connection):
            made.connection.execute(statement("insert_device"), ("till-1", "scanner"))
        yield made


def apply(ledger: Ledger, document: DesiredTwin) -> list[Configured] | None:
    """Apply in a transaction."""
    with database.transaction(ledger.connection):
        return TwinWriter(ledger).apply(document)


def known(ledger: Ledger) -> list[str]:
    """The devices that may speak."""
    return [row[0] for row in ledger.connection.execute(statement("devices"))]


def test_devices_come_and_go_with_the_document_and_a_technicians_own_stays(ledger: Ledger) -> None:
    """Also when the document had it for a while."""
    assert apply(ledger, desired(1, fridge_1={"sampling_s": 60}, till_1={})) is not None
    assert known(ledger) == ["fridge-1", "till-1"]
    told = apply(ledger, desired(2))
    assert told is not None
    assert sorted(told) == [Configured("fridge-1", b""), Configured("till-1", b"")]
    assert known(ledger) == ["till-1"]


def test_only_devices_whose_configuration_changes_are_told(ledger: Ledger) -> None:
    """A new threshold for one probe must not make a thousand others write to their flash."""
    apply(ledger, desired(1, a={"sampling_s": 60}, b={"sampling_s": 60}))
    told = apply(ledger, desired(2, a={"sampling_s": 60}, b={"sampling_s": 30}))
    assert told is not None
    assert [(each.device, DeviceConfig.decode(each.payload).version) for each in told] == [("b", 2)]
    assert [DeviceConfig.decode(each.payload).version for each in twin.configs(ledger.connection)] == [1, 2]


def test_an_older_document_changes_nothing(ledger: Ledger) -> None:
    """Two workers may push in either order, and a broker may deliver twice."""
    apply(ledger, desired(5, a={}))
    assert apply(ledger, desired(4, b={})) is None
    assert apply(ledger, desired(5, b={})) is None
    assert (twin.version(ledger.connection), known(ledger)) == (5, ["a", "till-1"])


@pytest.mark.parametrize("text", ["", "{}", '{"v":1,"version":3,"state":{"novel":1}}'])
def test_a_first_twin_that_cannot_be_taken_costs_nothing_else(ledger: Ledger, tmp_path: Path, text: str) -> None:
    """The certificate it came with is good; the document comes again with the first contact, and is refused there."""
    told: list[tuple[str, str]] = []
    assert _first_twin(tmp_path / "ledger.db", text, lambda *step: told.append(step)) is None
    assert [step for step, _ in told] == ["twin"]
    assert twin.version(ledger.connection) == 0


def test_a_first_twin_is_no_newer_than_what_is_in_force(ledger: Ledger, tmp_path: Path) -> None:
    """A gateway that enrols again may have heard of a later one meanwhile."""
    path = tmp_path / "ledger.db"
    assert _first_twin(path, desired(2, a={}).encode().decode(), lambda *_: None) == 2
    assert _first_twin(path, desired(2, b={}).encode().decode(), lambda *_: None) is None
    assert (twin.version(ledger.connection), known(ledger)) == (2, ["a", "till-1"])


def link(ledger: Ledger, told: list[Configured]) -> TwinSync:
    """A link whose writes happen at once."""

    async def write(run: Callable[[Ledger], Any]) -> Any:
        with database.transaction(ledger.connection):
            return run(ledger)

    writes: Callable[..., Awaitable[Any]] = write
    signals = Signals()
    signals.twin_applied.connect(told.extend)
    return TwinSync(ledger.connection, writes, signals)


@pytest.mark.parametrize(
    ("payload", "refused"),
    [
        (b"{", 0),
        (b'{"v": 1, "version": 9}', 9),
        (b'{"v": 1, "version": 9, "state": {"devices": {"a": {"kind": "probe", "new_field": 1}}}}', 9),
        (b'{"v": 2, "version": 9, "state": {}}', 9),
        (b'{"v": 1, "version": 1e400, "state": {}}', 0),
        (b'{"v": 1, "version": 9, "state": {"limits": {"window_frames": 0}}}', 9),
        (b'{"v": 1, "version": -1, "state": {}}', 0),
        (b"\xff" * 100, 0),
        (b"[" * 100_000, 0),
    ],
)
def test_a_broken_document_is_refused_with_its_reason_and_the_old_one_stays(
    ledger: Ledger, payload: bytes, refused: int
) -> None:
    """A gateway that applied half of a document would be what nobody wanted."""
    told: list[Configured] = []
    apply(ledger, desired(3, a={}))
    report = asyncio.run(link(ledger, told).take(payload))
    assert (report.version, report.refused, told) == (3, refused, [])
    assert report.reason
    assert known(ledger) == ["a", "till-1"]


def test_what_devices_answer_is_reported(ledger: Ledger) -> None:
    """The version each works with, and why it cannot work with the newest."""
    told: list[Configured] = []
    twins = link(ledger, told)
    asyncio.run(twins.take(desired(1, a={"sampling_s": 1}, b={}).encode()))
    assert [each.device for each in told] == ["a", "b"]
    with database.transaction(ledger.connection):
        ledger.connection.execute(statement("confirm_config"), (0, "no faster than every 5 s", "a"))
        ledger.connection.execute(statement("confirm_config"), (1, None, "b"))
    report = twins.report()
    assert (report.version, report.confirmed, report.errors) == (1, {"b": 1}, {"a": "no faster than every 5 s"})


def test_limits_narrow_and_never_widen(ledger: Ledger) -> None:
    """Anyone who runs the gateway knows how large its disk is."""
    document = DesiredTwin(
        version=1, state=DesiredState.model_validate_json(json.dumps({"limits": {"readings": 5000}}))
    )
    apply(ledger, document)
    limits = twin.limits(ledger.connection)
    assert twin.narrow(1_000_000, limits.readings) == 5_000
    assert twin.narrow(2_000, limits.readings) == 2_000
    assert twin.narrow(16, limits.window_frames) == 16


def test_a_reader_sees_it_too(ledger: Ledger, tmp_path: Path) -> None:
    """`stocktide edge twin` works while the agent runs."""
    apply(ledger, desired(1, a={}))
    with closing(database.open_reader(tmp_path / "ledger.db")) as reader:
        assert twin.version(reader) == 1

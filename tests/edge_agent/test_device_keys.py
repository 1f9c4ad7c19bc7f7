"""The broker's password file: the twin's devices come and go, everybody else stays, whenever the gateway dies."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.devices import device_keys
from edge_agent.devices.device_keys import PasswordFile
from edge_agent.ledger import database
from edge_agent.ledger.ledger import Ledger
from testbed.hand_clock import HandClock
from wire_protocol import passwords
from wire_protocol.passwords import hashed
from wire_protocol.twin import DesiredState, InvalidTwin, merged

ONE, TWO = (hashed(secret, salt=bytes(12)) for secret in ("one", "two"))


@pytest.fixture
def ledger(tmp_path: Path, clock: HandClock) -> Iterator[Ledger]:
    """An empty ledger."""
    with Ledger.create(tmp_path / "ledger.db", "gw-a", clock) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> PasswordFile:
    """A password file with a user whom a technician has added."""
    made = PasswordFile(tmp_path / "passwords")
    made.path.write_text(f"agent:{TWO}\n")
    made.path.chmod(0o640)
    return made


def keep(ledger: Ledger, file: PasswordFile, keys: dict[str, str], *, dies: bool = False) -> bool:
    """What the agent does when the twin changes; it may die before the file is written."""
    with database.transaction(ledger.connection):
        had = device_keys.note_keyed(ledger, keys)
    if dies:
        return False
    changed = file.put(keys, had)
    with database.transaction(ledger.connection):
        device_keys.note_written(ledger, keys)
    return changed


def users(file: PasswordFile) -> dict[str, str]:
    """The users of the file."""
    pairs = (line.partition(":") for line in file.path.read_text().splitlines())
    return {user: stored for user, _, stored in pairs}


def test_keys_come_change_and_go_and_other_users_stay(ledger: Ledger, file: PasswordFile) -> None:
    """Removing a device from the twin must lock it out; removing the agent would lock the gateway out."""
    assert keep(ledger, file, {"fridge-1": ONE, "till-1": ONE})
    assert users(file) == {"agent": TWO, "fridge-1": ONE, "till-1": ONE}
    assert keep(ledger, file, {"fridge-1": TWO})
    assert users(file) == {"agent": TWO, "fridge-1": TWO}
    assert not keep(ledger, file, {"fridge-1": TWO}), "nothing changed, so the broker need not read it again"
    assert keep(ledger, file, {})
    assert users(file) == {"agent": TWO}
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o640, "the broker is in the file's group"


def test_a_gateway_that_dies_between_twin_and_file_catches_up(ledger: Ledger, file: PasswordFile) -> None:
    """The next twin may not have the device at all, and the file may have it already."""
    keep(ledger, file, {"fridge-1": ONE})
    keep(ledger, file, {"till-1": ONE}, dies=True)
    keep(ledger, file, {}, dies=True)
    file.path.write_text(f"agent:{TWO}\nfridge-1:{ONE}\ntill-1:{ONE}\n")  # whatever of it got there
    assert keep(ledger, file, {})
    assert users(file) == {"agent": TWO}


def test_a_file_that_cannot_be_written_stays_as_it_was(ledger: Ledger, file: PasswordFile) -> None:
    """A broker without its password file lets nobody in."""
    directory = file.path.with_name("sub")
    directory.mkdir()
    (directory / "passwords").mkdir()
    with pytest.raises(OSError, match="directory"):
        keep(ledger, PasswordFile(directory / "passwords"), {"fridge-1": ONE})
    assert [path.name for path in directory.iterdir()] == ["passwords"]


@pytest.mark.parametrize("command", ["false", "no-such-command", "'"])
def test_a_reload_that_fails_is_tried_again(ledger: Ledger, tmp_path: Path, file: PasswordFile, command: str) -> None:
    """Until the broker has read the file, a device that was removed is still let in."""
    broken = PasswordFile(file.path, reload_command=command)
    for _ in range(2):
        with pytest.raises(OSError, match=r"did not read|No such file"):
            keep(ledger, broken, {"fridge-1": ONE})
    assert users(file)["fridge-1"] == ONE
    broken.reload_command = f"touch {tmp_path / 'read'}"
    assert not keep(ledger, broken, {"fridge-1": ONE})
    assert (tmp_path / "read").exists()
    (tmp_path / "read").unlink()
    keep(ledger, broken, {"fridge-1": ONE})
    assert not (tmp_path / "read").exists(), "once is enough"


def test_who_comes_later_under_a_name_that_the_twin_once_had_stays(ledger: Ledger, file: PasswordFile) -> None:
    """A technician adds a user by hand; the twin has long forgotten that name."""
    keep(ledger, file, {"fridge-1": ONE})
    keep(ledger, file, {})
    file.path.write_text(f"{file.path.read_text()}fridge-1:{TWO}\n")
    keep(ledger, file, {"till-1": ONE})
    assert users(file) == {"agent": TWO, "fridge-1": TWO, "till-1": ONE}


def test_a_twin_cannot_take_the_agents_own_account() -> None:
    """The gateway would be deaf to its own broker, and a device would be the agent."""
    with pytest.raises(InvalidTwin, match="agent"):
        merged({}, {"devices": {"agent": {"kind": "probe", "key": ONE}}})


@pytest.mark.bound("wire_protocol.passwords.ITERATIONS_MAX")
def test_the_iterations_of_a_key_are_bounded() -> None:
    """Mosquitto verifies on its only thread: a key of ten million iterations stops a gateway's broker for seconds."""
    salt_and_digest = f"{'A' * 16}${'A' * 86}=="

    def twin(iterations: int) -> DesiredState:
        key = f"$7${iterations}${salt_and_digest}"
        return merged({}, {"devices": {"fridge-1": {"kind": "probe", "key": key}}})

    assert device_keys.wanted(twin(passwords.ITERATIONS_MAX)).keys() == {"fridge-1"}
    for iterations in (0, passwords.ITERATIONS_MAX + 1, 9_999_999):
        with pytest.raises(InvalidTwin, match="key"):
            twin(iterations)


@pytest.mark.parametrize("key", ["secret", "$7$101$abc$def", f"{ONE}\nmallory:{ONE}", ONE.replace("$7$", "$6$")])
def test_a_twin_takes_only_hashes(key: str) -> None:
    """A key in plain text would be in the history, and a line feed would make a user."""
    with pytest.raises(InvalidTwin):
        merged({}, {"devices": {"fridge-1": {"kind": "probe", "key": key}}})


def test_a_device_is_not_told_its_hash() -> None:
    """Its configuration is retained on a broker that others use too."""
    state = merged({}, {"devices": {"fridge-1": {"kind": "probe", "key": ONE}}})
    assert device_keys.wanted(state) == {"fridge-1": ONE}
    assert "key" not in state.devices["fridge-1"].body().model_dump()

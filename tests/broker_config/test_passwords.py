"""Password files. That Mosquitto itself accepts them is shown in test_mosquitto.py."""

import base64
import stat
from pathlib import Path

import pytest

from broker_config import passwords
from broker_config.errors import InvalidPasswords
from wire_protocol.passwords import ITERATIONS_MAX
from wire_protocol.passwords import hashed as hash_of

WRITTEN_BY_MOSQUITTO = (
    "$7$101$jhUYJUyynEPx+3DP$Vww3yb61kEyndZNeut4OJvpY18FgPOeKMGawVL3FDBs8PKeTmBaE4v38mIPsY6/dgLzhc/z0d5bB373/p+LSYw=="
)


def test_a_hash_is_the_one_that_mosquitto_passwd_writes() -> None:
    """Files written by either tool must work with the other: the constant is from mosquitto_passwd 2.0.21."""
    salt = base64.b64decode("jhUYJUyynEPx+3DP")
    assert hash_of("correct-horse-battery", salt=salt) == WRITTEN_BY_MOSQUITTO
    assert passwords.verify("correct-horse-battery", WRITTEN_BY_MOSQUITTO)
    assert not passwords.verify("correct-horse-batterz", WRITTEN_BY_MOSQUITTO)


@pytest.mark.parametrize(
    "stored", ["", "plain", "$7$", "$7$x$a$b", "$6$101$YQ==$YQ==", "$7$101$?$YQ==", "$7$101$YQ==$"]
)
def test_a_malformed_hash_has_no_password(stored: str) -> None:
    """A damaged line must lock its user out, not let everybody in."""
    assert not passwords.verify("", stored)
    assert not passwords.verify("a", stored)


@pytest.mark.parametrize("iterations", ["0", "-1", "9" * 20, "9" * 5_000, "\u0661"])
def test_a_hash_of_too_many_iterations_has_no_password(iterations: str) -> None:
    """One such line in a password file kept the broker at it for hours, or ended the connection with a traceback."""
    assert not passwords.verify("a", f"$7${iterations}$jhUYJUyynEPx+3DP${'A' * 86}==")
    assert not passwords.verify("a", hash_of("a", salt=bytes(12), iterations=ITERATIONS_MAX + 1))


def test_the_file_keeps_other_users_and_is_private(tmp_path: Path) -> None:
    """Changing one password must not lose the fleet's, nor show them to other users of the machine."""
    file = tmp_path / "passwords"
    passwords.set_password(file, "gw-a", "first-password")
    passwords.set_password(file, "gw-b", "other-password")
    before = passwords.read(file)["gw-b"]
    passwords.set_password(file, "gw-a", "second-password")
    users = passwords.read(file)
    assert users["gw-b"] == before
    assert passwords.verify("second-password", users["gw-a"])
    assert not passwords.verify("first-password", users["gw-a"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("user", "password"), [("a:b", "long-enough-1"), ("+", "long-enough-1"), ("gw-a", "short")])
def test_bad_users_and_short_passwords_are_refused(user: str, password: str, tmp_path: Path) -> None:
    """A colon would end the name early; a wildcard is nobody's name."""
    file = tmp_path / "passwords"
    with pytest.raises(InvalidPasswords) as refused:
        passwords.set_password(file, user, password)
    assert refused.value.hint
    assert not file.exists()


@pytest.mark.parametrize("text", ["gw-a\n", "gw-a:plain\n", b"\xff\xfe"])
def test_what_is_not_a_password_file_is_named_as_such(text: str | bytes, tmp_path: Path) -> None:
    """A wrong path must not be overwritten with a password file."""
    file = tmp_path / "passwords"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InvalidPasswords, match=str(file)):
        passwords.set_password(file, "gw-a", "long-enough-1")


def test_generated_passwords_are_long_and_differ() -> None:
    """They stand in for keys: 192 bits."""
    made = {passwords.generate() for _ in range(100)}
    assert len(made) == 100
    assert all(len(password) >= 32 for password in made)

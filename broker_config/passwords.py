"""Mosquitto's password files: one `user:hash` a line (`wire_protocol.passwords`).

Invariant: a password file is only ever replaced as a whole, and only its owner may read it.
"""

import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from broker_config.errors import InvalidPasswords
from wire_protocol import names, passwords
from wire_protocol.errors import InvalidName
from wire_protocol.passwords import verify

__all__ = ["generate", "hashed", "read", "set_password", "verify", "write"]

SALT_BYTES: Final = 12
GENERATED_BYTES: Final = 24
PASSWORD_CHARS_MIN: Final = 12


def generate() -> str:
    """A new random password of 192 bits, made of letters, digits, `-` and `_`."""
    return secrets.token_urlsafe(GENERATED_BYTES)


def hashed(password: str) -> str:
    """The hash of a password under a new salt."""
    return passwords.hashed(password, salt=secrets.token_bytes(SALT_BYTES))


def read(file: Path) -> dict[str, str]:
    """The users of a password file with their hashes.

    Raises:
        InvalidPasswords: the file cannot be read, or a line is not one of a password file.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPasswords(
            f"{file} cannot be read: {error}", hint=f"Make it with: stocktide broker passwd {file} USER"
        ) from error
    users = {}
    for number, line in enumerate(lines, start=1):
        user, found, stored = line.partition(":")
        if not line:
            continue
        if not found or not stored.startswith("$7$"):
            raise InvalidPasswords(f"{file}, line {number}: not a user with a $7$ hash.", hint="Is it a password file?")
        users[user] = stored
    return users


def set_password(file: Path, user: str, password: str) -> None:
    """Add a user to a password file, or change its password. The file is made if need be.

    Raises:
        InvalidPasswords: the user name cannot be one of a gateway, device or service, or the password is too short.
    """
    try:
        if user not in {names.INGEST_USER, names.AGENT_USER}:
            names.device(user)
    except InvalidName as error:
        raise InvalidPasswords(f"{user!r} cannot be a user name.", hint=error.hint) from error
    if len(password) < PASSWORD_CHARS_MIN:
        raise InvalidPasswords(
            f"The password has {len(password)} characters.", hint=f"Use {PASSWORD_CHARS_MIN} or more, or --generate."
        )
    write(file, {**(read(file) if file.exists() else {}), user: hashed(password)})


def write(file: Path, users: Mapping[str, str]) -> None:
    """Replace a password file: mode 0600, or as it was, so that a running broker can still reload it."""
    text = "".join(f"{user}:{stored}\n" for user, stored in users.items())
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # makes it 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as partial:
            partial.write(text)
            partial.flush()
            os.fsync(partial.fileno())
        if file.exists():
            Path(name).chmod(file.stat().st_mode & 0o640)
            if os.geteuid() == 0:
                os.chown(name, file.stat().st_uid, file.stat().st_gid)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

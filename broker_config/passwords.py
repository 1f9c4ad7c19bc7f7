"""Mosquitto's password files: one `user:$7$iterations$salt$hash` a line, PBKDF2 with SHA-512.

Invariant: a password file is only ever replaced as a whole, and only its owner may read it.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from broker_config.errors import InvalidPasswords
from wire_protocol import names
from wire_protocol.errors import InvalidName

# Mosquitto checks a password on its only thread while all other clients wait, so a fleet that reconnects after an
# outage pays for each iteration. Ours are random by default, where stretching adds nothing: 101 is Mosquitto's own.
ITERATIONS: Final = 101
SALT_BYTES: Final = 12
GENERATED_BYTES: Final = 24
PASSWORD_CHARS_MIN: Final = 12
_FIELDS: Final = 5


def generate() -> str:
    """A new random password of 192 bits, made of letters, digits, `-` and `_`."""
    return secrets.token_urlsafe(GENERATED_BYTES)


def hashed(password: str, *, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """The hash of a password as Mosquitto stores it: `$7$101$…$…`."""
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations)
    return f"$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def verify(password: str, stored: str) -> bool:
    """Whether a password has this hash. A hash that is not well formed has no password."""
    fields = stored.split("$")
    if len(fields) != _FIELDS or fields[1] != "7" or not fields[2].isdecimal():
        return False
    try:
        salt = base64.b64decode(fields[3], validate=True)
    except binascii.Error:
        return False
    return hmac.compare_digest(hashed(password, salt=salt, iterations=int(fields[2])), stored)


def read(file: Path) -> dict[str, str]:
    """The users of a password file with their hashes.

    Raises:
        InvalidPasswords: the file cannot be read, or a line is not one of a password file.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPasswords(
            f"{file} cannot be read: {error}", hint="Make it with: stocktide broker passwd"
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
    """Replace a password file: mode 0600, and the owner it had, so that a running broker can still reload it."""
    text = "".join(f"{user}:{stored}\n" for user, stored in users.items())
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # makes it 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as partial:
            partial.write(text)
            partial.flush()
            os.fsync(partial.fileno())
        if file.exists() and os.geteuid() == 0:
            os.chown(name, file.stat().st_uid, file.stat().st_gid)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

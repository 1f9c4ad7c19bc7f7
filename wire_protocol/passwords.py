"""Hashes of passwords as Mosquitto keeps them: `$7$iterations$salt$hash`, PBKDF2 with SHA-512.

What travels in a twin is such a hash of a device's key: the key itself is known to the device alone.

Invariant: nothing here draws randomness; a salt is an argument.
"""

import base64
import binascii
import hashlib
import hmac
import re
from typing import Annotated, Final

from pydantic import StringConstraints

# Mosquitto checks a password on its only thread while all other clients wait, so a fleet that reconnects after an
# outage pays for each iteration. Ours are random by default, where stretching adds nothing: 101 is Mosquitto's own.
ITERATIONS: Final = 101
# A hash comes from outside, in a twin or in a password file, and the verifier pays for its iterations: 5 digits.
ITERATIONS_MAX: Final = 99_999
_ITERATIONS: Final = r"[1-9][0-9]{0,4}"
_FIELDS: Final = 5

PasswordHash = Annotated[
    str, StringConstraints(pattern=rf"^\$7\${_ITERATIONS}\$[A-Za-z0-9+/]{{16,64}}={{0,2}}\$[A-Za-z0-9+/]{{86}}==$")
]


def hashed(password: str, *, salt: bytes, iterations: int = ITERATIONS) -> str:
    """The hash of a password: `$7$101$…$…`."""
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations)
    return f"$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def verify(password: str, stored: str) -> bool:
    """Whether a password has this hash. A hash that is not well formed, or too dear to verify, has no password."""
    fields = stored.split("$")
    if len(fields) != _FIELDS or fields[1] != "7" or not re.fullmatch(_ITERATIONS, fields[2]):
        return False
    try:
        salt = base64.b64decode(fields[3], validate=True)
    except binascii.Error:
        return False
    return hmac.compare_digest(hashed(password, salt=salt, iterations=int(fields[2])), stored)

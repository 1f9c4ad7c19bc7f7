"""A one-time claim as people read, type and scan it: `k3f9-w2xh-…`, its public name, its secret and a check.

The first 8 characters name the claim and appear in its topics; the next 24 are the secret, 120 random bits; the last 2
catch what was mistyped before anything is sent. The alphabet is Crockford's (https://www.crockford.com/base32.html):
no letter looks like a digit, case and dashes do not matter.

Invariant: a code that parses is exactly one that was made.
"""

import zlib
from dataclasses import dataclass, field
from typing import Final, Self

from wire_protocol.errors import WireError

NAME_CHARS: Final = 8
SECRET_CHARS: Final = 24
CHECK_CHARS: Final = 2
CODE_BYTES: Final = 20  # of randomness: 5 bits a character of name and secret
TYPED_CHARS_MAX: Final = 100
GROUP_CHARS: Final = 4
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
SECRET_PATTERN: Final = rf"^[{_ALPHABET}]{{{SECRET_CHARS}}}$"
_LOOKALIKES: Final = str.maketrans({"o": "0", "i": "1", "l": "1"})


class InvalidClaim(WireError, ValueError):
    """This is not a claim."""

    usage = True


@dataclass(frozen=True, slots=True)
class ClaimCode:
    """A claim's public name and its secret, which no repr, log or error shows."""

    name: str
    secret: str = field(repr=False)

    @classmethod
    def make(cls, entropy: bytes) -> Self:
        """A claim from 20 random bytes."""
        if len(entropy) != CODE_BYTES:
            raise InvalidClaim(f"A claim is made of {CODE_BYTES} random bytes.")
        number = int.from_bytes(entropy)
        text = "".join(_ALPHABET[number >> 5 * place & 31] for place in range(NAME_CHARS + SECRET_CHARS))
        return cls(text[:NAME_CHARS], text[NAME_CHARS:])

    @classmethod
    def parse(cls, typed: str) -> Self:
        """Read a claim as it was typed or scanned.

        Raises:
            InvalidClaim: a character is missing, too many or wrong; the message never repeats what was typed.
        """
        text = "".join(typed[:TYPED_CHARS_MAX].lower().split()).replace("-", "").translate(_LOOKALIKES)
        wanted = NAME_CHARS + SECRET_CHARS + CHECK_CHARS
        if len(text) != wanted:
            raise InvalidClaim(
                f"A claim has {wanted} characters, this has {len(text)}.", hint="Copy or scan the whole claim."
            )
        code, check = cls(text[:NAME_CHARS], text[NAME_CHARS:-CHECK_CHARS]), text[-CHECK_CHARS:]
        if not set(text) <= set(_ALPHABET) or code._check() != check:
            raise InvalidClaim("The claim was mistyped: its last two characters do not fit.", hint="Type it again.")
        return code

    def text(self) -> str:
        """The whole claim, to be shown once: groups of four."""
        whole = self.name + self.secret + self._check()
        return "-".join(whole[at : at + GROUP_CHARS] for at in range(0, len(whole), GROUP_CHARS))

    def _check(self) -> str:
        number = zlib.crc32((self.name + self.secret).encode())
        return "".join(_ALPHABET[number >> 5 * place & 31] for place in range(CHECK_CHARS))

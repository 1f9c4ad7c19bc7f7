"""Names that travel on the link, and what each may look like.

A name becomes part of a topic, a file name or a database key, so each has a strict pattern and a bound. Slugs (tenant,
site, gateway) are lower case because they are typed on command lines and spoken on the telephone; device names follow
what makers print on the case; SKUs, lots and locations are the customer's own words, so anything printable goes.

Two names that look the same must be the same, so what comes in by a door (command line, file, device, API) has one
spelling: `misspelt` says what is wrong with another one, `respelt` mends what can be mended without guessing. What is
stored or on the link was taken by an older door and stays what it is: `Text` is all that is asked of it.
"""

import contextlib
import re
import unicodedata
from typing import Annotated, Final

from pydantic import StringConstraints

from wire_protocol.errors import InvalidName

SLUG_CHARS_MAX: Final = 63
DEVICE_CHARS_MAX: Final = 64
TEXT_CHARS_MAX: Final = 64
EVENT_ID_CHARS_MAX: Final = 64

SLUG_PATTERN: Final = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
DEVICE_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
EVENT_ID_PATTERN: Final = r"^[A-Za-z0-9._:/-]{1,64}$"
ULID_PATTERN: Final = r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$"
# Printable text: no control characters or line separators, and no blank at either end.
_UNPRINTABLE: Final = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
TEXT_PATTERN: Final = rf"^[^\s{_UNPRINTABLE}](?:[^{_UNPRINTABLE}]{{0,62}}[^\s{_UNPRINTABLE}])?$"

# What each pattern asks for, in words: a firmware author should not need to read a regular expression to mend a
# message.
PATTERNS: Final = {
    SLUG_PATTERN: f"use 1 to {SLUG_CHARS_MAX} of a-z, 0-9 and '-', beginning and ending with a letter or digit",
    DEVICE_PATTERN: f"use 1 to {DEVICE_CHARS_MAX} of A-Z, a-z, 0-9, '.', '_' and '-', beginning with a letter or digit",
    EVENT_ID_PATTERN: f"use 1 to {EVENT_ID_CHARS_MAX} of A-Z, a-z, 0-9 and '._:/-'",
    ULID_PATTERN: "use a ULID, 26 characters",
    TEXT_PATTERN: f"use 1 to {TEXT_CHARS_MAX} printable characters without blanks at the ends",
}

TenantName = Annotated[str, StringConstraints(pattern=SLUG_PATTERN)]
SiteName = Annotated[str, StringConstraints(pattern=SLUG_PATTERN)]
GatewayName = Annotated[str, StringConstraints(pattern=SLUG_PATTERN)]
DeviceName = Annotated[str, StringConstraints(pattern=DEVICE_PATTERN)]
EventId = Annotated[str, StringConstraints(pattern=EVENT_ID_PATTERN)]
Ulid = Annotated[str, StringConstraints(pattern=ULID_PATTERN)]
Text = Annotated[str, StringConstraints(pattern=TEXT_PATTERN, max_length=TEXT_CHARS_MAX)]
Sku = Text
Lot = Text
Serial = Text
LocationName = Text
Reference = Text
Actor = Text

INGEST_USER: Final = "ingest"
AGENT_USER: Final = "agent"
CLAIMS_USER: Final = "claims"  # what carries claims from their own broker to the cloud's

SUPPLIER: Final = "@supplier"
CUSTOMER: Final = "@customer"
SCRAP: Final = "@scrap"
ADJUST: Final = "@adjust"
TRANSIT_PREFIX: Final = "@transit:"

# A scanner's own mark before what it has read: ISO/IEC 15424, annex A.
AIM_PATTERN: Final = r"\][A-Za-z][0-9A-Za-z]"
_AIM_CHARS: Final = 3
# Letters and marks that show nothing, by which one name would be two: beside the categories below, what Unicode calls
# Default_Ignorable_Code_Point, the blank of Braille, and what stands for a character that was lost.
_INVISIBLE: Final = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, 0xFFFD, 0x1D159),
            *(*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)),
        ),
    )
)
_NO_TEXT: Final[dict[str, str]] = {
    "Cc": "a control character",
    "Cf": "a character that nobody sees",
    "Cs": "half a character",
    "Co": "a character for private use",
    "Cn": "no character of Unicode",
    "Zl": "a line break",
    "Zp": "a line break",
    "Zs": "another kind of blank",
}
# Unicode names no control character; these are its aliases of the frequent ones.
_CONTROLS: Final = {
    "\0": "NULL",
    "\t": "CHARACTER TABULATION",
    "\n": "LINE FEED",
    "\r": "CARRIAGE RETURN",
    "\x1b": "ESCAPE",
    "\x1d": "GROUP SEPARATOR",
    "\x7f": "DELETE",
}
GTIN_DIGITS: Final = (8, 12, 13, 14)
_SHOWN_CHARS_MAX: Final = 40

_AIM = re.compile(AIM_PATTERN)
_SLUG = re.compile(SLUG_PATTERN)
_DEVICE = re.compile(DEVICE_PATTERN)
_TEXT = re.compile(TEXT_PATTERN)
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def _sentence(pattern: str) -> str:
    words = PATTERNS[pattern]
    return f"{words[0].upper()}{words[1:]}."


def is_virtual(location: str) -> bool:
    """Whether a location stands for the world outside the shelves (`@supplier`, `@transit:berlin`, …)."""
    return location.startswith("@")


def is_known_location(location: str) -> bool:
    """Whether a location is a shelf, or one of the virtual locations the ledger defines."""
    if not is_virtual(location):
        return True
    if location.startswith(TRANSIT_PREFIX):
        return _SLUG.fullmatch(location.removeprefix(TRANSIT_PREFIX)) is not None
    return location in {SUPPLIER, CUSTOMER, SCRAP, ADJUST}


def transit(site: str) -> str:
    """The location of goods on their way to a site."""
    return TRANSIT_PREFIX + slug(site, "site")


def slug(value: str, what: str) -> str:
    """Return a tenant, site or gateway name unchanged, or raise InvalidName."""
    if _SLUG.fullmatch(value):
        return value
    raise InvalidName(
        f"{value!r} is not a valid {what} name.",
        hint=_sentence(SLUG_PATTERN),
    )


def gateway(value: str) -> str:
    """Return a gateway name unchanged, or raise InvalidName; the workers' user name on the cloud's broker is taken."""
    if value == INGEST_USER:
        raise InvalidName(f"No gateway may be named {value}.", hint="That is the workers' user name; choose another.")
    return slug(value, "gateway")


def device(value: str) -> str:
    """Return a device name unchanged, or raise InvalidName; the agent's user name on its broker is taken."""
    if value == AGENT_USER:
        raise InvalidName(f"No device may be named {value}.", hint="That is the agent's user name; choose another.")
    if _DEVICE.fullmatch(value):
        return value
    raise InvalidName(
        f"{value!r} is not a valid device name.",
        hint=_sentence(DEVICE_PATTERN),
    )


def text(value: str, what: str) -> str:
    """Return a SKU, lot, serial, location, reference or actor unchanged, or raise InvalidName with what is wrong."""
    if (problem := misspelt(value)) is None:
        return value
    raise InvalidName(f"{value[:_SHOWN_CHARS_MAX]!a} is not a valid {what}: {problem}.", hint=_sentence(TEXT_PATTERN))


def misspelt(value: str, chars_max: int = TEXT_CHARS_MAX) -> str | None:
    """What is wrong with a name that comes in by a door, in words; None when it has the one spelling.

    It is 1 to `chars_max` characters in Unicode's form NFC; none of them is invisible, a control character, of private
    use or unassigned, and the blank is U+0020 and not at the ends. A position counts from 1.
    """
    if not value:
        return "it is empty"
    if len(value) > chars_max:
        return f"it has {len(value)} characters, {chars_max} are the most"
    if not (value.isascii() and value.isprintable()) and (problem := _strange(value)) is not None:
        return problem
    if value[0] == " " or value[-1] == " ":
        return f"it has a blank at position {1 if value[0] == ' ' else len(value)}, at the end of the name"
    if value[0] == "]" and _AIM.match(value):
        return f"it begins with a scanner's mark, {value[:3]}: set the scanner to leave it out"
    return None


def _strange(value: str) -> str | None:
    for position, character in enumerate(value, 1):
        category = unicodedata.category(character)
        if character == " " or (category not in _NO_TEXT and character not in _INVISIBLE):
            continue
        return f"{_called(character)} at position {position} is {_NO_TEXT.get(category, _NO_TEXT['Cf'])}"
    composed = unicodedata.normalize("NFC", value)
    if composed == value:
        return None
    at = next((n for n, pair in enumerate(zip(value, composed, strict=False)) if pair[0] != pair[1]), len(composed))
    return (
        f"{_called(value[at])} at position {at + 1} has another form, {_called(composed[at])}"
        if at < len(composed)
        else f"{_called(value[at])} at position {at + 1} is not in Unicode's form NFC"
    )


def _called(character: str) -> str:
    name = unicodedata.name(character, _CONTROLS.get(character, ""))
    return f"U+{ord(character):04X} {name}".rstrip()


def respelt(value: str, *, scanned: bool = False) -> str:
    """A name as people meant it, where their keyboard, locale or table has added something: no guesses.

    Bytes of UTF-8 that a locale did not know become characters, characters become NFC, every kind of blank becomes
    U+0020, and blanks and line ends at the ends go. Of what may be `scanned`, so does a scanner's mark (`]C1`).
    """
    if not value.isascii():
        with contextlib.suppress(UnicodeError):
            value = value.encode("utf-8", "surrogateescape").decode()
        value = "".join(" " if unicodedata.category(each) == "Zs" else each for each in value)
        value = unicodedata.normalize("NFC", value)
    value = value.strip(" \t\r\n")
    if scanned and _AIM.match(value) and len(value) > _AIM_CHARS:
        value = value[_AIM_CHARS:].lstrip(" ")
    return value


def likeness(value: str) -> str:
    """What is left of a name when all that nobody sees is gone: names with the same are the same to a reader."""
    seen = "".join(
        each
        for each in respelt(value)
        if each == " " or (unicodedata.category(each) not in _NO_TEXT and each not in _INVISIBLE)
    )
    name = unicodedata.normalize("NFC", " ".join(seen.split()))
    while _AIM.match(name) and len(name) > _AIM_CHARS:
        name = name[_AIM_CHARS:].lstrip(" ")
    return name


def gtin(value: str) -> str:
    """Return a GTIN unchanged, or raise InvalidName: 8, 12, 13 or 14 digits, the last of which checks the others.

    The check digit: GS1 General Specifications, 7.9.1.
    """
    what = f"{value[:_SHOWN_CHARS_MAX]!a} is no GTIN"
    if not (value.isascii() and value.isdigit()):
        raise InvalidName(f"{what}: it has other characters than 0 to 9.", hint="Write the digits below the barcode.")
    if len(value) not in GTIN_DIGITS:
        raise InvalidName(f"{what}: it has {len(value)} digits.", hint="A GTIN has 8, 12, 13 or 14.")
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(reversed(value)))
    if total % 10:
        right = (int(value[-1]) - total) % 10
        raise InvalidName(
            f"{what}: its last digit is {value[-1]}, and the others give {right}.",
            hint="One of the digits is wrong; copy them again from the package.",
        )
    return value


def image_store(value: str) -> str:
    """Return the name of a shelf unchanged, or raise InvalidName; virtual locations cannot be registered."""
    if is_virtual(value):
        raise InvalidName(
            f"{value[:_SHOWN_CHARS_MAX]!a} is not a shelf.", hint="Names that begin with @ stand for the world outside."
        )
    return text(value, "location")


def ulid(at_ms: int, entropy: bytes) -> str:
    """Make a ULID (https://github.com/ulid/spec) from a Unix time in milliseconds and 10 random bytes."""
    if len(entropy) != 10 or not 0 <= at_ms < 1 << 48:  # noqa: PLR2004 - the 80 bits of the specification
        raise InvalidName("A ULID is made of 48 bits of milliseconds and 10 random bytes.")
    number = at_ms << 80 | int.from_bytes(entropy)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))

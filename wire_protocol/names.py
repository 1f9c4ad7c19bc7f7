"""Names that travel on the link, and what each may look like.

A name becomes part of a topic, a file name or a database key, so each has a strict pattern and a bound. Slugs (tenant,
site, gateway) are lower case because they are typed on command lines and spoken on the telephone; device names follow
what makers print on the case; SKUs, lots and locations are the customer's own words, so anything printable goes.
"""

import re
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
    """Return a SKU, lot, location or reference unchanged, or raise InvalidName."""
    if _TEXT.fullmatch(value):
        return value
    raise InvalidName(
        f"{value!r} is not a valid {what}.",
        hint=_sentence(TEXT_PATTERN),
    )


def image_store(value: str) -> str:
    """Return the name of a shelf unchanged, or raise InvalidName; virtual locations cannot be registered."""
    if is_virtual(value):
        raise InvalidName(f"{value!r} is not a shelf.", hint="Names that begin with @ stand for the world outside.")
    return text(value, "location")


def ulid(at_ms: int, entropy: bytes) -> str:
    """Make a ULID (https://github.com/ulid/spec) from a Unix time in milliseconds and 10 random bytes."""
    if len(entropy) != 10 or not 0 <= at_ms < 1 << 48:  # noqa: PLR2004 - the 80 bits of the specification
        raise InvalidName("A ULID is made of 48 bits of milliseconds and 10 random bytes.")
    number = at_ms << 80 | int.from_bytes(entropy)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))

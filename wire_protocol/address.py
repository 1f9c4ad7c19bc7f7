"""Broker addresses: mqtt://[user:password@]host[:port], mqtts:// for TLS. Both ends of the link write them alike.

Invariant: an address that is taken means what it says. Nothing is guessed, cut off or ignored: a scheme that is not
known would mean plain TCP to somebody who wanted TLS, and send the password in the clear.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import unquote

from wire_protocol.errors import WireError

PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
PORT_MAX: Final = 65_535
SHOWN_CHARS_MAX: Final = 200
_TLS_SCHEMES: Final = {"ssl", "tls", "mqtt+ssl", "mqtt+tls", "https", "wss"}
_ENCODED: Final = "#?%[]\\ "
# A mistyped address must not send a password somewhere else: what a general parser cuts off, or lets pass, is refused.
_FORBIDDEN: Final = re.compile(r"[\s#?\\\x00-\x20\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]")
_PLACE: Final = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]|(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


class InvalidAddress(WireError, ValueError):
    """A broker's address is not well formed."""

    usage = True


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is and who we are there; the password never shows in a repr, a log or an error."""

    host: str
    port: int
    tls: bool = False
    user: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse an address.

        Raises:
            InvalidAddress: it is not one.
        """
        scheme, mark, rest = url.partition("://")
        if scheme.lower() not in PORTS:
            raise _refused(url, _scheme_problem(scheme) if mark else "it does not begin with mqtt:// or mqtts://")
        authority, slash, after = rest.partition("/")
        if slash and after:
            raise _refused(url, "a broker's address has no path; percent-encode / in a password as %2F")
        if found := _FORBIDDEN.search(authority):
            raise _refused(url, _character_problem(found[0]))
        userinfo, at, place = authority.rpartition("@")
        if "@" in userinfo:
            raise _refused(url, "there is more than one @; percent-encode it in a user or password as %40")
        user, colon, password = userinfo.partition(":")
        if at and not user:
            raise _refused(url, "there is an @ without a user before it")
        host, port = _place(url, place, PORTS[scheme.lower()])
        return cls(
            host,
            port,
            scheme.lower() == "mqtts",
            _decoded(url, user) if at else None,
            _decoded(url, password) if colon else None,
        )


def _place(url: str, place: str, usual_port: int) -> tuple[str, int]:
    """Host and port of what stands after the user."""
    match = _PLACE.fullmatch(place)
    if match is None:
        raise _refused(url, "there is no host in it, or one with characters that no host has")
    host = match["ipv6"] or match["name"]
    if match["ipv6"]:
        try:
            ipaddress.IPv6Address(match["ipv6"].partition("%")[0])
        except ValueError:
            raise _refused(url, "what is in the brackets is no IPv6 address") from None
    port = usual_port if match["port"] is None else int(match["port"])
    if not 1 <= port <= PORT_MAX:
        raise _refused(url, f"a port is 1 to {PORT_MAX}")
    return host, port


def _decoded(url: str, text: str) -> str:
    """A user or password without its percent-encoding."""
    if _BAD_PERCENT.search(text):
        raise _refused(url, "a % in a user or password is written %25")
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _refused(url, "a user or password is percent-encoded UTF-8") from None
    if "\0" in plain:
        raise _refused(url, "a user or password has no NUL")
    return plain


def _scheme_problem(scheme: str) -> str:
    if scheme.lower() in _TLS_SCHEMES:
        return f"{scheme}:// is not known here, and would not be TLS; TLS is mqtts://"
    return f"{scheme[:20]}:// is not known here; plain TCP is mqtt://, TLS is mqtts://"


def _character_problem(character: str) -> str:
    if character in _ENCODED:
        return f"there is a {character!r} in it; percent-encode it in a user or password as %{ord(character):02X}"
    return f"there is a {character!a} in it, which no address has"


def _refused(url: str, problem: str) -> InvalidAddress:
    shown = without_password(url)[:SHOWN_CHARS_MAX]
    return InvalidAddress(
        f"{shown!a} is not a broker's address: {problem}.",
        hint="It looks like mqtt://host, mqtt://user:password@host:1883 or mqtts://host.",
    )


def without_password(url: str) -> str:
    """An address that may be shown: whatever stands before the last `@`, or may be a password, is left out."""
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    if "@" in rest:
        return f"{scheme}{mark}{rest.rpartition('@')[2]}"
    host, colon, port = rest.partition(":")
    if colon and not port[:1].isdigit() and not host.startswith("["):
        return f"{scheme}{mark}{host}:…"
    return url

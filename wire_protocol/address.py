"""Broker addresses: mqtt://[user:password@]host[:port], mqtts:// for TLS. Both ends of the link write them alike."""

from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from wire_protocol.errors import WireError

PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


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
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS[parts.scheme]
        except (KeyError, ValueError):
            port = 0
        if not port or not parts.hostname or parts.path not in {"", "/"}:
            raise InvalidAddress(
                f"{without_password(url)!r} is not a broker's address.",
                hint="It looks like mqtt://host, mqtt://user:password@host:1883 or mqtts://host.",
            )
        user = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        return cls(parts.hostname, port, parts.scheme == "mqtts", user, password)


def without_password(url: str) -> str:
    """An address that may be shown: whatever stands before the last `@` is left out."""
    scheme, mark, rest = url.partition("://")
    if "@" not in rest:
        return url
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"

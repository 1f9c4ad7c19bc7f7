"""Broker addresses: mqtt://[user:password@]host[:port], mqtts:// for TLS; `{device}` stands for the device's name.

The edge agent has the same form of address; the two parts do not import each other.
"""

from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote, urlsplit

from firmware_sim.errors import BadInput

_PORTS = {"mqtt": 1883, "mqtts": 8883}
DEVICE = "{device}"


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a gateway's broker is and who a device is there; the password never shows in a repr or a message."""

    host: str
    port: int
    tls: bool = False
    user: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"

    def user_of(self, device: str) -> str | None:
        """The user name that a device connects with."""
        return None if self.user is None else self.user.replace(DEVICE, device)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse an address.

        Raises:
            BadInput: it is not one.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS[parts.scheme]
        except (KeyError, ValueError):
            port = 0
        if not port or not parts.hostname or parts.path not in {"", "/"}:
            raise BadInput(
                f"{_without_password(url)!r} is not a broker address.",
                hint="It looks like mqtt://host, mqtt://{device}:password@host:1883 or mqtts://host.",
            )
        user = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        return cls(parts.hostname, port, parts.scheme == "mqtts", user, password)


def _without_password(url: str) -> str:
    scheme, mark, rest = url.rpartition("@")
    return f"…@{rest}" if mark and scheme else url

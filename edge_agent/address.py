"""Broker addresses: mqtt://[user:password@]host[:port], mqtts:// for TLS."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote, urlsplit

from edge_agent.errors import BadInput

_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is and who we are there; the password never shows in a repr or a log."""

    host: str
    port: int
    tls: bool
    user: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse an address.

        Raises:
            BadInput: it is not one.
        """
        parts = urlsplit(url)
        try:
            port = parts.port or _PORTS[parts.scheme]
        except (KeyError, ValueError):
            port = 0
        if not port or not parts.hostname or parts.path not in {"", "/"}:
            raise BadInput(
                "A broker address looks like mqtt://host, mqtt://user:password@host:1883 or mqtts://host.",
                hint="Give it with --cloud or --local, or in STOCKTIDE_EDGE_CLOUD_URL / STOCKTIDE_EDGE_LOCAL_URL.",
            )
        user = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        return cls(parts.hostname, port, parts.scheme == "mqtts", user, password)

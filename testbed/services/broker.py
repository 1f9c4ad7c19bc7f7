"""A Mosquitto broker that a test or a benchmark owns, with a configuration of its own.

Invariant: the broker's directory has the same name for the test and for the broker, so that a rendered configuration
can be started as it is.
"""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final, TypeAlias

from testbed.eventually import NeverHappened, eventually
from testbed.services.errors import ServerFailed
from testbed.services.installation import Installation
from testbed.services.server import HOST, Server, accepts

SAVE_S_MAX: Final = 30.0
# Given the port and the directory, returns the text of mosquitto.conf; it may write other files into the directory.
RenderConfig: TypeAlias = Callable[[int, Path], str]


def anonymous_config(port: int, _directory: Path) -> str:
    """A broker that lets everybody in and forgets everything when it stops."""
    return "\n".join(
        [
            f"listener {port} {HOST}",
            "allow_anonymous true",
            "set_tcp_nodelay true",
            "max_inflight_messages 0",
            "max_queued_messages 1000000",
            "log_type error",
            "log_type warning",
            "",
        ]
    )


def persistent_config(port: int, directory: Path) -> str:
    """An anonymous broker that writes its sessions to disk after each change, so that they survive SIGKILL."""
    return anonymous_config(port, directory) + "\n".join(
        [
            "persistence true",
            f"persistence_location {directory}/",
            "autosave_on_changes true",
            "autosave_interval 1",
            "",
        ]
    )


class PrivateBroker(Server):
    """A broker of one's own: `with PrivateBroker() as broker: aiomqtt.Client("127.0.0.1", broker.port)`.

    `config` renders mosquitto.conf once, when the broker is first started; without it the broker is anonymous, and
    with `persistent` its sessions, queues and retained messages survive `kill`.
    """

    kind: ClassVar[str] = "mosquitto"
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(
        self,
        config: RenderConfig | None = None,
        *,
        persistent: bool = False,
        installation: Installation | None = None,
        owner_file: Path | None = None,
    ) -> None:
        super().__init__(installation, owner_file=owner_file)
        self._config: RenderConfig = config or (persistent_config if persistent else anonymous_config)

    @property
    def url(self) -> str:
        return f"mqtt://{HOST}:{self.port}"

    def save(self) -> None:
        """Make a persistent broker write its memory to disk now, rather than within its next second."""
        database = self.data / "mosquitto.db"
        before = _version(database)
        self.send(signal.SIGUSR1)
        try:
            eventually(lambda: _version(database) != before, within_s=SAVE_S_MAX)
        except NeverHappened as error:
            raise ServerFailed("The broker did not save.", hint="Is it persistent?") from error

    def forget(self) -> None:
        """Remove what a persistent broker has saved; call it while the broker is down."""
        if self.is_running:
            raise ServerFailed("The broker runs and would save again.", hint="Call kill() first.")
        (self.data / "mosquitto.db").unlink(missing_ok=True)

    def _prepare(self) -> None:
        (self.data / "mosquitto.conf").write_text(self._config(self.port, self.data))

    def _command(self) -> list[str]:
        return self.installation.command(self.installation.mosquitto, "-c", str(self.data / "mosquitto.conf"))

    def _is_ready(self) -> bool:
        return accepts(self.port)


def _version(file: Path) -> int | None:
    # Mosquitto writes a new file and renames it over the old one.
    return file.stat().st_ino if file.exists() else None

"""What the tests of bounds share: a broker that refuses everybody and counts the attempts."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

# CONNACK of MQTT 5 with reason code 0x88 and no properties.
SERVER_UNAVAILABLE: Final = bytes([0x20, 3, 0, 0x88, 0])


class Doorkeeper:
    """Listens on loopback and answers each CONNECT with a refusal, or closes the connection without a word."""

    def __init__(self, *, polite: bool) -> None:
        self._answer = SERVER_UNAVAILABLE if polite else b""

    def __enter__(self) -> Self:
        self.attempts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._refuse, name="doorkeeper")
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Only this wakes a thread that waits in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    @property
    def url(self) -> str:
        """Where to knock."""
        return f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"

    def _refuse(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.attempts += 1
            with connection, suppress(OSError):
                connection.recv(4096)
                connection.sendall(self._answer)

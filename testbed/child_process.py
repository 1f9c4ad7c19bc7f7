"""A process of ours that a test stops or kills, and starts again."""

import signal
import subprocess
from pathlib import Path
from typing import Final

KILL_S_MAX: Final = 30.0
STOP_S_MAX: Final = 60.0


class ChildProcess:
    """A child with a log of all its lives; who derives from this starts it."""

    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log_file(self) -> Path:
        """What the process wrote, in all its lives."""
        raise NotImplementedError

    @property
    def child(self) -> "subprocess.Popen[bytes]":
        """The process of its latest life; it must have been started."""
        assert self.process is not None
        return self.process

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def times(self, event: str) -> int:
        """How often the process has logged an event, in all its lives."""
        return self.log_file.read_text().count(f'"{event}"')

    def kill(self) -> None:
        """SIGKILL: no DISCONNECT, no commit, no release. A dead process stays dead."""
        self.child.kill()
        self.child.wait(KILL_S_MAX)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(STOP_S_MAX)

"""A process of ours that a test stops or kills, and starts again."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from testbed.warm_process import WarmProcess

KILL_S_MAX: Final = 30.0
STOP_S_MAX: Final = 60.0


class ChildProcess:
    """A child with a log of all its lives; who derives from this starts it."""

    process: "WarmProcess | subprocess.Popen[bytes] | None" = None

    @property
    def log_file(self) -> Path:
        """What the process wrote, in all its lives."""
        raise NotImplementedError

    @property
    def child(self) -> "WarmProcess | subprocess.Popen[bytes]":
        """The process of its latest life; it must have been started."""
        assert self.process is not None
        return self.process

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start_process(
        self, arguments: Sequence[str], log: IO[Any], environment: Mapping[str, str], *, fresh: bool
    ) -> None:
        """Start `stocktide …` with all it prints in a log: warm, or fresh where its memory or its speed is measured."""
        if fresh:
            command = [sys.executable, "-m", "stocktide", *arguments]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        else:
            self.process = WarmProcess(arguments, stdout=log, stderr=log, environment=environment)

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

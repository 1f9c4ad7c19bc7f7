"""Processes of `stocktide` that start warm: forked from an interpreter that has imported all of it.

A fresh interpreter spends a third of a second on imports for a command, and nearly one for a worker; the tests start a
thousand of them. A warm one is a process of its own in everything that a test looks at: signals, exit code, files,
environment, streams, the end of its interpreter (`tests/testbed/test_warm_process.py` compares them). What is about the
start itself, as encodings of a terminal or imports of a command, is tested with fresh interpreters.

Invariant: this process forks none of its own; it may have threads, a starter has none.
"""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from testbed import warm_starter
from testbed.warm_starter import MESSAGE_BYTES_MAX, STATUS_BYTES

# Variables that change the interpreter itself, before any of our code runs.
ROOT: Final = Path(__file__).parents[1]
INTERPRETERS_OWN: Final = ("PYTHON", "LC_", "LANG")
CLOSED: Final = -1  # a stream that was closed before the process began


class WarmProcess:
    """A running `stocktide …`, with the part of `subprocess.Popen` that tests use.

    Args:
        arguments: the words after `stocktide`.
        stdin, stdout, stderr: files or descriptors, /dev/null by default, or `CLOSED`.
        environment: all variables; ours by default.

    Raises:
        ValueError: the environment is one that only a fresh interpreter would follow.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.args = ["stocktide", *arguments]
        self.returncode: int | None = None
        variables = dict(os.environ if environment is None else environment)
        if _interpreters_own(variables) != _interpreters_own(os.environ):
            raise ValueError("These variables are for a fresh interpreter.")
        self._status, theirs = os.pipe()
        nowhere = os.open(os.devnull, os.O_RDWR)
        files = [nowhere if stream is None else _descriptor(stream) for stream in (stdin, stdout, stderr)]
        closed = [place for place, file in enumerate(files) if file == CLOSED]
        files = [nowhere if file == CLOSED else file for file in files]
        try:
            self.pid = _starter().start([*files, theirs], [*arguments], variables, closed)
        finally:
            os.close(nowhere)
            os.close(theirs)

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._ended()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def _ended(self) -> None:
        told = os.read(self._status, STATUS_BYTES)
        os.close(self._status)
        assert len(told) == STATUS_BYTES, "the starter of warm processes is gone"
        self.returncode = int.from_bytes(told, "big", signed=True)

    def __del__(self) -> None:
        if self.__dict__.get("returncode") is None and "_status" in self.__dict__:
            os.close(self._status)


def run(
    *arguments: str,
    text: str = "",
    environment: Mapping[str, str] | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    timeout: float = 60.0,
) -> "subprocess.CompletedProcess[str]":
    """Run `stocktide …` to its end, with `text` on its standard input, and read what it prints.

    Raises:
        subprocess.TimeoutExpired: it was killed after `timeout` seconds.
    """
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        asked.write(text.encode())
        asked.seek(0)
        process = WarmProcess(
            arguments,
            stdin=asked,
            stdout=out if stdout is None else stdout,
            stderr=err if stderr is None else stderr,
            environment=environment,
        )
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            raise
        out.seek(0)
        err.seek(0)
        shown, said = out.read().decode(errors="replace"), err.read().decode(errors="replace")
        return subprocess.CompletedProcess(process.args, code, shown, said)


class _Starter:
    """The interpreter that has imported everything, as its owner sees it; it ends with this process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command, files = [sys.executable, "-m", warm_starter.__name__, str(theirs.fileno())], [theirs.fileno()]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=files, cwd=ROOT)

    def end(self) -> None:
        self._socket.close()
        self._process.wait()

    def start(
        self, files: Sequence[int], arguments: Sequence[str], environment: Mapping[str, str], closed: Sequence[int]
    ) -> int:
        asked = [[*arguments], dict(environment), [*closed], str(Path.cwd())]
        socket.send_fds(self._socket, [json.dumps(asked).encode()], files)
        return int(self._socket.recv(MESSAGE_BYTES_MAX))


@functools.cache
def _starter() -> _Starter:
    made = _Starter()
    atexit.register(made.end)
    return made


def _interpreters_own(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(INTERPRETERS_OWN)}


def _descriptor(stream: int | IO[Any]) -> int:
    return stream if isinstance(stream, int) else stream.fileno()

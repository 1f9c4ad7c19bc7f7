"""The interpreter that has imported all of `stocktide`, and forks itself for each process that a test starts.

Its messages are datagrams: words, variables, closed streams and folder as JSON, with the three streams and the pipe for
the exit code as descriptors; it answers with the pid.

Invariant: it has one thread, so that a fork is whole. It ends when its owner does.
"""

import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

PACKAGES: Final = (
    "broker_config",
    "cloud_api",
    "cloud_cli",
    "cloud_identity",
    "cloud_ingest",
    "cloud_store",
    "edge_agent",
    "stocktide",
)
MESSAGE_BYTES_MAX: Final = 200_000
STATUS_BYTES: Final = 4
FILES: Final = 4  # standard input, output and error, and where the exit code goes
FILES_MAX: Final = 1024  # more are never open here


def _import_all() -> None:
    for package in PACKAGES:
        found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        for name in sorted(module.name for module in found):
            if not name.endswith("__main__"):
                importlib.import_module(name)


def _serve(asked: socket.socket) -> bool:
    """Fork what is asked for until the owner is gone; returns True in each process that was forked."""
    ended, tell = os.pipe()
    for end in (ended, tell):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([asked.fileno(), ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _report(running)
        if asked.fileno() in ready:
            message, files, _, _ = socket.recv_fds(asked, MESSAGE_BYTES_MAX, FILES)
            if not message:
                return False
            arguments, environment, closed, folder = json.loads(message)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _become(files, arguments, environment, closed, folder)
                return True
            running[pid] = files[-1]
            for file in files[:-1]:
                os.close(file)
            asked.send(str(pid).encode())


def _report(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        place = running.pop(pid)
        with suppress(BrokenPipeError):
            os.write(place, os.waitstatus_to_exitcode(status).to_bytes(STATUS_BYTES, "big", signed=True))
        os.close(place)


def _become(
    files: Sequence[int], arguments: list[str], environment: Mapping[str, str], closed: Sequence[int], folder: str
) -> None:
    """Take over the streams, variables and folder that were asked for, as a fresh interpreter finds them."""
    for place, file in enumerate(files[:-1]):
        os.dup2(file, place)
    os.closerange(3, FILES_MAX)
    for place in closed:
        os.close(place)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    sys.argv = ["stocktide", *arguments]
    sys.stdin = _stream(0, "r", "<stdin>", "strict")
    sys.stdout = _stream(1, "w", "<stdout>", "strict")
    sys.stderr = _stream(2, "w", "<stderr>", "backslashreplace")


def _stream(file: int, mode: str, name: str, errors: str) -> io.TextIOWrapper | None:
    try:
        os.fstat(file)
    except OSError:
        return None  # as Python has it for a stream that is closed
    unbuffered = mode == "w" and bool(os.environ.get("PYTHONUNBUFFERED"))
    # It lives as long as the process.
    buffer: Any = open(file, f"{mode}b", buffering=0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    (buffer if unbuffered else buffer.raw).name = name
    by_line = errors != "strict" or os.isatty(file)  # standard error always is
    return io.TextIOWrapper(buffer, "utf-8", errors, "\n", line_buffering=by_line, write_through=unbuffered)


if __name__ == "__main__":
    _import_all()
    gc.freeze()
    if _serve(socket.socket(fileno=int(sys.argv[1]))):
        runpy.run_module("stocktide", run_name="__main__", alter_sys=True)

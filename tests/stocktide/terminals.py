"""Real processes of `stocktide`, on whatever they may be given to print on."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

from testbed import warm_process

PROGRAM: Final = "from stocktide.cli import main; main()"
ENCODINGS: Final[dict[str, dict[str, str]]] = {
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
    "c-locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
SINKS: Final = ("full", "gone", "closed", "all-full")


class Shown(NamedTuple):
    """How a command ended, and what it printed where that could be read."""

    code: int
    out: str
    err: str


def stocktide(
    *arguments: str,
    encoding: str | None = None,
    sink: str = "pipe",
    environment: Mapping[str, str] | None = None,
) -> Shown:
    """Run `stocktide …`.

    Args:
        arguments: the command.
        encoding: the terminal's, a key of `ENCODINGS`, which a fresh interpreter reads; a warm process writes UTF-8.
        sink: standard output is read ("pipe"), has no room ("full"), has no reader ("gone"), was closed before the
            command began ("closed"), or has no room as standard error has none ("all-full").
        environment: further variables.
    """
    variables = {**os.environ, **(ENCODINGS[encoding] if encoding else {}), **(environment or {})}
    out = None
    if "full" in sink:
        out = os.open("/dev/full", os.O_WRONLY)
    elif sink == "gone":
        reader, out = os.pipe()
        os.close(reader)
    elif sink == "closed":
        out = warm_process.CLOSED
    err = out if sink == "all-full" else None
    run = _fresh if encoding else warm_process.run
    try:
        done = run(*arguments, environment=variables, stdout=out, stderr=err)
    finally:
        if out is not None and out != warm_process.CLOSED:
            os.close(out)
    return Shown(done.returncode, done.stdout, done.stderr)


def _fresh(
    *arguments: str, environment: Mapping[str, str], stdout: int | None, stderr: int | None
) -> "subprocess.CompletedProcess[str]":
    """As `warm_process.run`, in an interpreter of its own."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    if stdout == warm_process.CLOSED:
        command, stdout = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command], None
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE if stderr is None else stderr,
        env=environment,
        check=False,
    )
    out, err = (done.stdout or b"").decode(errors="replace"), (done.stderr or b"").decode(errors="replace")
    return subprocess.CompletedProcess(command, done.returncode, out, err)

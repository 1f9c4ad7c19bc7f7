"""Real processes of `stocktide`, on whatever they may be given to print on."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

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
    *arguments: str, encoding: str = "utf-8", sink: str = "pipe", environment: Mapping[str, str] | None = None
) -> Shown:
    """Run `stocktide …`.

    Args:
        arguments: the command.
        encoding: the terminal's, a key of `ENCODINGS`.
        sink: standard output is read ("pipe"), has no room ("full"), has no reader ("gone"), was closed before the
            command began ("closed"), or has no room as standard error has none ("all-full").
        environment: further variables.
    """
    command = [sys.executable, "-c", PROGRAM, *arguments]
    variables = {**os.environ, **ENCODINGS[encoding], **(environment or {})}
    if sink == "closed":
        command = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command]
    out = subprocess.PIPE
    if "full" in sink:
        out = os.open("/dev/full", os.O_WRONLY)
    elif sink == "gone":
        reader, out = os.pipe()
        os.close(reader)
    err = out if sink == "all-full" else subprocess.PIPE
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=variables, check=False)
    finally:
        if out != subprocess.PIPE:
            os.close(out)
    return Shown(done.returncode, (done.stdout or b"").decode(errors="replace"), (done.stderr or b"").decode("latin-1"))

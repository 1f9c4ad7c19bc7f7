"""The demo's processes: each with its log file, ended together, by process id.

Invariant: no process outlives the context, not even when it ignores SIGTERM.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from stocktide.demo.errors import ProcessFailed

READY_S_MAX: Final = 30.0
STOP_S_MAX: Final = 15.0
LOG_TAIL_LINES: Final = 12


@dataclass(slots=True)
class Processes:
    """Starts `stocktide …` commands; use as an async context manager."""

    folder: Path
    _running: list[tuple[str, asyncio.subprocess.Process]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.gather(*(_end(process) for _, process in self._running))

    async def start(self, name: str, *arguments: str, ready: str | None, **environment: str) -> None:
        """Start `stocktide ARGUMENTS` and wait until its log has the text `ready`.

        Raises:
            ProcessFailed: it ended, or did not get ready in 30 s; the message has the end of its log.
        """
        log = self.folder / f"{name}.log"
        with log.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "stocktide",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=os.environ | environment,
            )
        self._running.append((name, process))
        if ready is None:
            return
        try:
            async with asyncio.timeout(READY_S_MAX):
                while ready not in log.read_text(errors="replace"):
                    self.check()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise ProcessFailed(f"{name} did not get ready.\n{_tail(log)}", hint=f"See {log}") from None

    async def run(self, *arguments: str, text: str = "", **environment: str) -> str:
        """Run a `stocktide` command to its end, with `text` on its standard input, and return what it printed.

        Raises:
            ProcessFailed: it ended with another exit code than 0.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "stocktide",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | environment,
        )
        output, errors = await process.communicate(text.encode())
        if process.returncode:
            said = (output + errors).decode(errors="replace")
            raise ProcessFailed(f"stocktide {' '.join(arguments)} failed:\n{said}")
        return output.decode(errors="replace")

    def check(self) -> None:
        """Raise ProcessFailed when a process has ended on its own."""
        for name, process in self._running:
            if process.returncode is not None:
                log = self.folder / f"{name}.log"
                raise ProcessFailed(
                    f"{name} ended with exit code {process.returncode}.\n{_tail(log)}", hint=f"See {log}"
                )


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(number)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_S_MAX)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

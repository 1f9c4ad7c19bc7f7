"""What commands print, on whatever they were given to print on: any encoding, full disks, pipes that nobody reads.

Invariant: after a write nothing fails by being shown. Invariant: standard error never makes a command fail.
"""

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final, ParamSpec, TextIO, TypeVar

from command_line.errors import StocktideError

P = ParamSpec("P")
T = TypeVar("T")

# What our own sentences have beyond ASCII, for terminals that have not: signs that stand alone, between blanks. Others
# are escaped: they may be part of a name, and a name is not written as another one.
_PLAINER: Final = {"→": "->", "×": "x", "…": "..."}
_PLAINLY: Final = "stocktide.plainly"

_writing: ContextVar[bool] = ContextVar("_writing", default=False)


class Unshown(StocktideError):
    """The output could not be written."""

    hint = "See that what the output goes to has room and is still read, and run the command again: it only reads."


class SecretUnshown(StocktideError):
    """A secret that is shown once could not be shown."""


def prepare() -> None:
    """Let this process print any character anywhere: one that the encoding lacks is written in plainer ones."""
    codecs.register_error(_PLAINLY, _plainly)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_PLAINLY)


def writes(command: Callable[P, T]) -> Callable[P, T]:
    """A command that changes something: what it cannot print, it says on standard error, and it goes on.

    Everything that such a command prints on standard output, it prints after the write; progress goes to `patient`.
    """

    @wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        token = _writing.set(True)
        try:
            return command(*arguments, **options)
        finally:
            _writing.reset(token)

    run.writes = True  # type: ignore[attr-defined]  # tests ask which commands do
    return run


def say(text: str = "", *, err: bool = False, end: str = "\n") -> None:
    """Print a text.

    Args:
        text: what to print.
        err: on standard error, where a failure is of no consequence.
        end: what follows it.

    Raises:
        Unshown: standard output does not take it, in a command that only reads.
        BrokenPipeError: nobody reads it any more, in a command that only reads.
    """
    try:
        _write(sys.stderr if err else sys.stdout, text + end)
    except (OSError, ValueError) as error:  # ValueError: the stream was closed
        _close(sys.stderr if err else sys.stdout)
        if err:
            return
        if not _writing.get():
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise
            raise Unshown(f"The output could not be written: {_reason(error)}.") from None
        say(f"note: it is done, but standard output does not take what it says: {_reason(error)}. It says:", err=True)
        say(text, err=True, end=end)


def say_secret(text: str, undo: Callable[[], str]) -> None:
    """Print a secret that is shown once.

    Args:
        text: what to print on standard output. It goes nowhere else: standard error ends in log files.
        undo: makes the secret worthless, because nobody has seen it; says in words what was done.

    Raises:
        SecretUnshown: it could not be shown, and is worthless now.
    """
    try:
        _write(sys.stdout or _NoOutput(), text + "\n")
    except (OSError, ValueError) as error:
        _close(sys.stdout)
        undone = undo()
        raise SecretUnshown(
            f"The secret could not be shown: {_reason(error)}.", hint=f"{undone} Run the command again."
        ) from None


class _NoOutput(io.TextIOBase):
    """Standard output where it was closed before the command began."""

    def write(self, _text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


@contextmanager
def pouring() -> Iterator[None]:
    """Around writing to `sys.stdout` itself, for what is too long to be said in one piece; as `say`."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _close(sys.stdout)
        if error.errno == errno.EPIPE:
            raise
        raise Unshown(f"The output could not be written: {_reason(error)}.") from None


class _Patient(io.TextIOBase):
    """Standard error, for progress: what it does not take is left out."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return sys.stderr.write(text) if sys.stderr is not None else len(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if sys.stderr is not None:
                sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()


def patient() -> TextIO:
    """Where progress is drawn while something is written: standard error, as far as it takes it."""
    return _Patient()  # type: ignore[return-value]  # as much of a file as a progress bar uses


@contextmanager
def sparing_output() -> Iterator[None]:
    """Around a whole process: nothing is left in a buffer that fails when the interpreter flushes it at its end."""
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):
                _close(stream)


def _write(stream: Any, text: str) -> None:
    """Write and flush. Not `typer.echo`, which takes an ASCII stream for UTF-8."""
    if stream is not None:
        stream.write(text)
        stream.flush()


def _close(stream: Any) -> None:
    """Send the rest of a stream nowhere: what is in its buffer would fail again at the end, with exit code 120."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text, start, end = error.object, error.start, error.end
    alone = text[start - 1 : start] in {"", " "} and text[start + 1 : start + 2] in {"", " ", "\n"}
    if alone and text[start] in _PLAINER:
        return _PLAINER[text[start]], start + 1
    return text[start:end].encode("ascii", "backslashreplace").decode("ascii"), end

"""How the gateway's connections are: each part's state, since when, why, and what to do, for `stocktide edge status`.

The agent keeps it in a file beside the ledger, which any process of its group can read; the log says each change once.

Invariant: writing happens on a change alone, in a thread of its own, and nobody waits for it. Invariant: a file that
cannot be written or read costs this display and nothing else.
"""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

from edge_agent import files

WRITE_S_MIN: Final = 0.2  # between two writings: what changes more often is flapping
TEXT_CHARS_MAX: Final = 300


class Part(StrEnum):
    """What has a condition."""

    DEVICES = "devices"
    """The gateway's own broker."""
    LINK = "link"
    """The connection to the cloud's broker."""
    CERTIFICATE = "certificate"
    CLOUD = "cloud"
    """The workers behind the broker, who acknowledge."""


class Condition(NamedTuple):
    """How a part is.

    Attributes:
        state: a word or two, the same for the same thing.
        ok: whether nobody need do anything.
        since_ms: when it came to be in this state; Unix, milliseconds.
        why: a sentence; None where there is nothing to explain.
        hint: what to do.
    """

    state: str
    ok: bool
    since_ms: int
    why: str | None = None
    hint: str | None = None


def wall_ms() -> int:
    """The wall clock: Unix, milliseconds."""
    return time.time_ns() // 1_000_000


def state_file(ledger: Path) -> Path:
    """Where the agent of a ledger keeps it."""
    ledger = files.real(ledger)
    return ledger.with_name(ledger.name + ".state")


def last(ledger: Path) -> dict[str, Condition]:
    """What the agent has said last, by part; nothing when it never said anything that can be read."""
    try:
        kept: dict[str, dict[str, Any]] = json.loads(state_file(ledger).read_text())
        return {
            part.value: Condition(
                str(kept[part]["state"])[:TEXT_CHARS_MAX],
                kept[part]["ok"] is True,
                int(kept[part]["since_ms"]),
                _text(kept[part].get("why")),
                _text(kept[part].get("hint")),
            )
            for part in Part
            if part in kept
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


class Conditions:
    """The conditions of this process's parts; `note` may be called in any thread.

    Args:
        ledger: the file beside which they are kept; None keeps them in memory alone.
        now_ms: the wall clock.
    """

    def __init__(self, ledger: Path | None = None, now_ms: Callable[[], int] = wall_ms) -> None:
        self._file = None if ledger is None else state_file(ledger)
        self._now_ms, self._lock = now_ms, Lock()
        self._parts: dict[Part, Condition] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    def __getitem__(self, part: Part) -> Condition | None:
        return self._parts.get(part)

    def problems(self) -> dict[str, str]:
        """What is not as it should be, in words, by part."""
        with self._lock:
            return {part.value: each.why or each.state for part, each in self._parts.items() if not each.ok}

    def note(self, part: Part, state: str, *, ok: bool, why: str | None = None, hint: str | None = None) -> bool:
        """Take how a part is now. Returns whether it was otherwise before: then it is time to say so in the log."""
        why, hint = _text(why), _text(hint)
        with self._lock:
            before = self._parts.get(part)
            if before is not None and (before.state, before.ok, before.why, before.hint) == (state, ok, why, hint):
                return False
            is_same = before is not None and (before.state, before.ok) == (state, ok)
            since_ms = before.since_ms if before is not None and is_same else self._now_ms()
            self._parts[part] = Condition(state, ok, since_ms, why, hint)
            loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop has ended, and the process with it
                loop.call_soon_threadsafe(self._changed.set)
        return True

    async def run(self) -> None:
        """Keep the file as the parts are, until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            await asyncio.to_thread(self._write)
            await asyncio.sleep(WRITE_S_MIN)

    def _write(self) -> None:
        if self._file is None:
            return
        with self._lock:
            kept = {part.value: condition._asdict() for part, condition in self._parts.items()}
        with suppress(OSError):  # a disk that is full or read-only keeps the one before
            files.write_whole(self._file, json.dumps(kept).encode(), mode=files.FILE_MODE)


def _text(value: object) -> str | None:
    """A sentence that fits on a screen and has no control characters in it: a broker may have written it."""
    if not isinstance(value, str):
        return None
    return "".join(character if character.isprintable() else " " for character in value)[:TEXT_CHARS_MAX]

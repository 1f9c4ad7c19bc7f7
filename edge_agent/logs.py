"""Logging of the agent: one event per unit of work, as text on a terminal and as JSON lines for a collector."""

import asyncio
import logging
import sys
from typing import Any, Final

import structlog

from command_line.log_budget import Sparing

LEVEL: Final = "info"


def set_level(level: str) -> None:
    """Log this and what is worse, from now on: debug, info, warning or error."""
    _filter.level = logging.getLevelNamesMapping()[level.upper()]


class TemporaryLevel:
    """A level that the cloud asked for, for a while."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def set(self, level: str, minutes: int) -> None:
        """Log at this level for `minutes` from now; call it in an event loop."""
        set_level(level)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(60 * minutes, set_level, LEVEL)
        structlog.get_logger("edge_agent").info("log_level_set", level=level, minutes=minutes)


class _Filter:
    """Drops what is below the level; the level can be changed while the agent runs."""

    level = logging.INFO

    def __call__(self, _logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        name = "ERROR" if method == "exception" else method.upper()
        if logging.getLevelNamesMapping().get(name, logging.INFO) < self.level:
            raise structlog.DropEvent
        return event


_filter = _Filter()


def configure(level: int = logging.INFO) -> None:
    """Log to standard error; a command that shows its own progress logs what goes wrong only."""
    _filter.level = level
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=False) if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            _filter,
            Sparing(("device", "topic"), structlog.DropEvent),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )

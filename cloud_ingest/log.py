"""Structured logging: one event for each unit of work, as JSON lines or for a terminal."""

import logging
import sys
import time
from typing import Literal

import structlog

from command_line.log_budget import LogBudget


class Sparing:
    """A processor: of each event about a gateway a few lines a minute are written, the others are counted."""

    def __init__(self, budget: LogBudget) -> None:
        self._budget = budget

    def __call__(self, _logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        gateway = event.get("gateway")
        if gateway is None:
            return event
        left_out = self._budget.admit((event["event"], gateway), time.monotonic())
        if left_out is None:
            raise structlog.DropEvent
        return {**event, "left_out": left_out} if left_out else event


def configure(log_format: Literal["console", "json"]) -> None:
    """Set the process's logging up; called once, by the command line."""
    renderer: structlog.typing.Processor
    renderer = structlog.processors.JSONRenderer() if log_format == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            Sparing(LogBudget()),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )

"""Structured logging: one event for each unit of work, as JSON lines or for a terminal."""

import logging
import sys
from typing import Literal

import structlog

from command_line.log_budget import Sparing


def configure(log_format: Literal["console", "json"]) -> None:
    """Set the process's logging up; called once, by the command line."""
    renderer: structlog.typing.Processor
    renderer = structlog.processors.JSONRenderer() if log_format == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            Sparing(("gateway",), structlog.DropEvent),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )

"""Upkeep: what keeps every table of the ledger within its bound.

Invariant: movements and counts are never shed; readings and dead letters are, oldest first, and what was dropped is
counted.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from edge_agent.errors import EdgeError
from edge_agent.ledger import database
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.outbox import Outbox
from edge_agent.ledger.sql import statement
from edge_agent.ledger.writer import Submit
from edge_agent.provisioning import twin
from edge_agent.provisioning.twin import narrow
from edge_agent.settings import EdgeSettings

UPKEEP_INTERVAL_S: Final = 10.0
OF_TOPIC_MAX: Final = 1_000  # dead letters of one topic, that is of one device and kind of message

log = structlog.get_logger("edge_agent.provisioning.retention")


def shed_readings(ledger: Ledger, readings_max: int) -> int:
    """Bring the ring of readings within its bound; returns how many were dropped that the cloud never saw."""
    connection = ledger.connection
    excess = connection.execute(statement("reading_count")).fetchone()[0] - readings_max
    if excess <= 0:
        return 0
    excess -= connection.execute(statement("drop_sealed_readings"), (excess,)).rowcount
    if excess <= 0:
        return 0
    dropped = connection.execute(statement("thin_waiting_readings"), (excess,)).rowcount
    connection.execute(statement("count_up"), ("readings_dropped", dropped))
    return dropped


def trim_dead_letters(ledger: Ledger, dead_letters_max: int) -> int:
    """Bring the dead letters within their bound; returns how many were dropped."""
    bounds = {"of_all_max": dead_letters_max, "of_topic_max": min(dead_letters_max, OF_TOPIC_MAX)}
    dropped = ledger.connection.execute(statement("trim_dead_letters"), bounds).rowcount
    if dropped:
        ledger.connection.execute(statement("count_up"), ("dead_letters_dropped", dropped))
    return dropped


def upkeep(ledger: Ledger, settings: EdgeSettings) -> dict[str, int]:
    """Bring everything within its bound, inside a transaction; returns what was dropped."""
    narrowed = twin.limits(ledger.connection)
    return {
        "readings_dropped": shed_readings(ledger, narrow(settings.readings_max, narrowed.readings)),
        "dead_letters_dropped": trim_dead_letters(ledger, settings.dead_letters_max),
        "frames_forgotten": Outbox(ledger).trim(
            keep_s=narrow(settings.frame_keep_s, narrowed.frame_keep_s),
            keep_bytes_max=narrow(settings.frame_keep_bytes_max, narrowed.frame_keep_bytes),
        ),
    }


async def empty_log(settings: EdgeSettings) -> None:
    """Empty the ledger's log (WAL) if it is above its bound: as a rule SQLite keeps it small by itself.

    A reader that stays in one transaction keeps it from doing so, and the log then stays as large as it became.
    """
    size = database.log_bytes(settings.ledger)
    if size <= settings.wal_bytes_max:
        return
    left = await asyncio.to_thread(database.empty_log, settings.ledger)
    if left <= settings.wal_bytes_max:
        log.info("ledger_log_emptied", bytes=size)
    else:
        hint = "A process reads the ledger in one long transaction; find it with: fuser LEDGER"
        log.warning("ledger_log_too_large", bytes=left, bytes_max=settings.wal_bytes_max, hint=hint)


async def keep_bounds(submit: Submit, settings: EdgeSettings, done: Callable[[], None]) -> None:
    """Bring everything within its bound now and then, until cancelled; `done` is called after each time."""
    while True:
        await asyncio.sleep(UPKEEP_INTERVAL_S)
        try:
            dropped = await asyncio.wrap_future(submit(lambda ledger: upkeep(ledger, settings)))
            await empty_log(settings)
        except EdgeError as error:
            log.warning("upkeep_postponed", reason=str(error))
            continue
        done()
        if any(dropped.values()):
            log.info("upkeep_done", **dropped)
